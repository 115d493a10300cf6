//! AMX: the tile unit of x86-64. Its instructions are written as assembly: the intrinsics are not stable.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::LazyLock;

use super::LANES;
use super::bf16_tiles::{DEPTH as BF16_DEPTH, Sums, Tile};
use super::tile_unit::{DEPTH, DotTile, RowTile, WeightTile};

thread_local! {
    static IN_USE: Cell<bool> = const { Cell::new(false) };
}

/// The tile registers of this thread, configured; they are given back when this is dropped.
struct Registers {
    /// The configuration is the thread's.
    not_send: PhantomData<*const ()>,
}

/// The tile registers of this thread for products of bytes.
pub struct TileUnit {
    _registers: Registers,
}

const AMX_BF16: u32 = 1 << 22;
const AMX_TILE: u32 = 1 << 24;
const AMX_INT8: u32 = 1 << 25;

/// True where the processor has the instructions for bytes and the system lets this process use them.
pub fn detected() -> bool {
    static DETECTED: LazyLock<bool> = LazyLock::new(|| may_use(AMX_INT8));
    *DETECTED
}

/// The same of the instructions for bfloat16.
pub fn bf16_detected() -> bool {
    static DETECTED: LazyLock<bool> = LazyLock::new(|| may_use(AMX_BF16));
    *DETECTED
}

fn may_use(instructions: u32) -> bool {
    let wanted = AMX_TILE | instructions;
    let has_instructions = __cpuid_count(7, 0).edx & wanted == wanted;
    super::avx512::detected() && has_instructions && permitted()
}

/// Asks Linux for the tile registers: a process has them only after it asked.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILE_DATA: libc::c_long = 18;
    // SAFETY: the call takes two integers and touches no memory of the process.
    let refused = unsafe {
        libc::syscall(
            libc::SYS_arch_prctl,
            ARCH_REQ_XCOMP_PERM,
            XFEATURE_XTILE_DATA,
        )
    };
    refused == 0
}

#[cfg(not(target_os = "linux"))]
const fn permitted() -> bool {
    false
}

/// What `ldtilecfg` reads: bytes a row and rows of each register.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Registers 0 and 1 hold dot products, 2 and 3 activations, 4 and 5 weights.
static CONFIGURATION: Configuration = Configuration {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 32, 32, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 8, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
};

impl TileUnit {
    /// Configures this thread's registers. Panics where there are none, and where the thread has a unit.
    pub fn new() -> Self {
        Self {
            _registers: Registers::new(detected(), &CONFIGURATION),
        }
    }

    /// Starts `rows · weights` in slot `SLOT`, 0 or 1; whatever was there is lost.
    #[inline(always)]
    pub fn start<const SLOT: usize>(&self, rows: &RowTile, weights: &WeightTile) {
        macro_rules! start {
            ($dots:literal, $rows:literal, $weights:literal) => {
                // SAFETY: this unit configured the registers on this thread; the strides and the
                // configured sizes are those of the arrays.
                unsafe {
                    asm!(
                        concat!("tilezero ", $dots),
                        concat!("tileloadd ", $rows, ", [{rows} + {row_bytes}]"),
                        concat!("tileloadd ", $weights, ", [{weights} + {vector_bytes}]"),
                        concat!("tdpbssd ", $dots, ", ", $rows, ", ", $weights),
                        rows = in(reg) rows.as_ptr(),
                        weights = in(reg) weights.as_ptr(),
                        row_bytes = in(reg) DEPTH,
                        vector_bytes = in(reg) 4 * LANES,
                        options(nostack, readonly, preserves_flags),
                    )
                }
            };
        }
        if SLOT == 0 {
            start!("tmm0", "tmm2", "tmm4");
        } else {
            start!("tmm1", "tmm3", "tmm5");
        }
    }

    /// Writes the dot products of slot `SLOT`.
    #[inline(always)]
    pub fn finish<const SLOT: usize>(&self, dots: &mut DotTile) {
        macro_rules! finish {
            ($dots:literal) => {
                // SAFETY: this unit configured the registers on this thread for the size of the array.
                unsafe {
                    asm!(
                        concat!("tilestored [{dots} + {vector_bytes}], ", $dots),
                        dots = in(reg) dots.0.as_mut_ptr(),
                        vector_bytes = in(reg) 4 * LANES,
                        options(nostack, preserves_flags),
                    )
                }
            };
        }
        if SLOT == 0 {
            finish!("tmm0");
        } else {
            finish!("tmm1");
        }
    }
}

impl Registers {
    /// Panics where they were not detected, and where the thread uses them.
    fn new(are_detected: bool, configuration: &'static Configuration) -> Self {
        assert!(
            are_detected,
            "tile registers were detected before they are used"
        );
        assert!(
            !IN_USE.replace(true),
            "a thread has one set of tile registers"
        );
        // SAFETY: the instructions were detected, and every configuration here is a valid one of 64 bytes.
        unsafe {
            asm!(
                "ldtilecfg [{configuration}]",
                configuration = in(reg) &raw const *configuration,
                options(nostack, readonly, preserves_flags),
            );
        }
        Self {
            not_send: PhantomData,
        }
    }
}

impl Drop for Registers {
    fn drop(&mut self) {
        // SAFETY: there are registers only where the instructions were detected.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) }
        IN_USE.set(false);
    }
}

/// The tile registers of this thread for products of bfloat16.
pub struct Bf16Unit {
    _registers: Registers,
}

/// Registers 0 to 3 hold sums, 4 and 5 tiles of the left matrix, 6 and 7 of the right one.
static BF16_CONFIGURATION: Configuration = Configuration {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

impl Bf16Unit {
    /// Configures this thread's registers. Panics where there are none, and where the thread has a unit.
    pub fn new() -> Self {
        Self {
            _registers: Registers::new(bf16_detected(), &BF16_CONFIGURATION),
        }
    }

    /// Writes the products of two rows of tiles with two columns of tiles, summed over all of them; the four have the same
    /// length.
    #[inline(always)]
    pub fn products(&self, left: [&[Tile]; 2], right: [&[Tile]; 2], sums: &mut [[Sums; 2]; 2]) {
        let depth = left[0].len();
        assert!(
            depth > 0 && left[1].len() == depth && right.iter().all(|tiles| tiles.len() == depth),
            "rows and columns of as many tiles"
        );
        let sums = sums.as_flattened_mut();
        // SAFETY: this unit configured the registers on this thread; the loop reads `depth` tiles of 1024 bytes from each
        // pointer and writes four sums of the configured size.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "2:",
                "tileloadd tmm4, [{a0} + {row_bytes}]",
                "tileloadd tmm6, [{b0} + {row_bytes}]",
                "tileloadd tmm7, [{b1} + {row_bytes}]",
                "tileloadd tmm5, [{a1} + {row_bytes}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {a0}, 1024",
                "add {a1}, 1024",
                "add {b0}, 1024",
                "add {b1}, 1024",
                "dec {depth}",
                "jnz 2b",
                "tilestored [{sums} + {row_bytes}], tmm0",
                "tilestored [{sums} + {row_bytes} + 1024], tmm1",
                "tilestored [{sums} + {row_bytes} + 2048], tmm2",
                "tilestored [{sums} + {row_bytes} + 3072], tmm3",
                a0 = inout(reg) left[0].as_ptr() => _,
                a1 = inout(reg) left[1].as_ptr() => _,
                b0 = inout(reg) right[0].as_ptr() => _,
                b1 = inout(reg) right[1].as_ptr() => _,
                depth = inout(reg) depth => _,
                sums = in(reg) sums.as_mut_ptr(),
                row_bytes = in(reg) 2 * BF16_DEPTH,
                options(nostack),
            );
        }
    }
}
