//! AMX: the tile unit of x86-64. Its instructions are written as assembly: the intrinsics are not stable.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::LazyLock;

use super::LANES;
use super::tile_unit::{DEPTH, DotTile, RowTile, WeightTile};

thread_local! {
    static IN_USE: Cell<bool> = const { Cell::new(false) };
}

/// The tile registers of this thread, configured; they are given back when this is dropped.
pub struct TileUnit {
    /// The configuration is the thread's.
    not_send: PhantomData<*const ()>,
}

/// True where the processor has the instructions and the system lets this process use them.
pub fn detected() -> bool {
    static DETECTED: LazyLock<bool> =
        LazyLock::new(|| super::avx512::detected() && has_instructions() && permitted());
    *DETECTED
}

fn has_instructions() -> bool {
    const AMX_TILE: u32 = 1 << 24;
    const AMX_INT8: u32 = 1 << 25;
    let edx = __cpuid_count(7, 0).edx;
    edx & AMX_TILE != 0 && edx & AMX_INT8 != 0
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
        assert!(
            detected(),
            "tile registers were detected before they are used"
        );
        assert!(
            !IN_USE.replace(true),
            "a thread has one set of tile registers"
        );
        // SAFETY: the instructions were detected, and the configuration is a valid one of 64 bytes.
        unsafe {
            asm!(
                "ldtilecfg [{configuration}]",
                configuration = in(reg) &raw const CONFIGURATION,
                options(nostack, readonly, preserves_flags),
            );
        }
        Self {
            not_send: PhantomData,
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

impl Drop for TileUnit {
    fn drop(&mut self) {
        // SAFETY: a unit exists only where the instructions were detected.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) }
        IN_USE.set(false);
    }
}
