//! What the system says of this device.

use serde::{Deserialize, Serialize};
use starship_battery::{Manager, State};
use sysinfo::{MemoryRefreshKind, RefreshKind, System};

/// What the system says of this device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceFacts {
    /// Memory of the machine, or what this process may use of it.
    pub memory_total_bytes: u64,
    /// Of that, what is free or can be freed.
    pub memory_available_bytes: u64,
    /// Cores; `None` where the system does not say.
    pub physical_cores: Option<usize>,
    /// Threads that run at a time.
    pub logical_cores: usize,
    /// Instructions that kernels may use.
    pub cpu_features: Vec<String>,
    /// What runs the layers.
    pub accelerator: String,
    /// Where the power comes from.
    pub power: Power,
}

/// Where the power comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "source", rename_all = "snake_case")]
pub enum Power {
    /// From the mains.
    Mains {
        /// The battery's charge; `None` where there is none.
        percent: Option<u8>,
    },
    /// From the battery.
    Battery {
        /// Its charge.
        percent: u8,
    },
    /// The system does not say.
    Unknown,
}

impl DeviceFacts {
    /// Asks the system. `place`: where the layers run.
    pub(crate) fn read(place: &str) -> Self {
        let wanted = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
        let (total, available) = System::new_with_specifics(wanted).map_or((0, 0), |system| {
            let machine = (system.total_memory(), system.available_memory());
            // In a container the limit is what counts.
            match system.cgroup_limits() {
                Some(limits) if limits.total_memory > 0 && limits.total_memory < machine.0 => {
                    let free = limits.free_memory.min(machine.1);
                    (limits.total_memory, free)
                }
                _ => machine,
            }
        });
        let accelerator = match place {
            "cpu" => "CPU".to_owned(),
            gpu => format!("NVIDIA GPU ({gpu})"),
        };
        Self {
            memory_total_bytes: total,
            memory_available_bytes: available,
            physical_cores: System::physical_core_count().ok(),
            logical_cores: std::thread::available_parallelism().map_or(1, usize::from),
            cpu_features: cpu_features(),
            accelerator,
            power: Power::read(),
        }
    }
}

impl Power {
    fn read() -> Self {
        let batteries = Manager::new().and_then(|manager| manager.batteries());
        let Ok(mut batteries) = batteries else {
            return Self::Unknown;
        };
        let Some(first) = batteries.next() else {
            return Self::Mains { percent: None };
        };
        let Ok(battery) = first else {
            return Self::Unknown;
        };
        let percent = percent(battery.state_of_charge().value);
        match battery.state() {
            State::Unknown => Self::Unknown,
            State::Discharging | State::Empty => Self::Battery { percent },
            State::Charging | State::Full | State::Paused => Self::Mains {
                percent: Some(percent),
            },
        }
    }
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "between 0 and 100"
)]
fn percent(charge: f32) -> u8 {
    (charge.clamp(0.0, 1.0) * 100.0).round() as u8
}

#[cfg(target_arch = "x86_64")]
fn cpu_features() -> Vec<String> {
    use std::arch::is_x86_feature_detected as has;
    let known = [
        ("avx2", has!("avx2")),
        ("fma", has!("fma")),
        ("f16c", has!("f16c")),
        ("avxvnni", has!("avxvnni")),
        ("avx512f", has!("avx512f")),
        ("avx512bw", has!("avx512bw")),
        ("avx512vnni", has!("avx512vnni")),
        ("avx512bf16", has!("avx512bf16")),
    ];
    named(&known)
}

#[cfg(target_arch = "aarch64")]
fn cpu_features() -> Vec<String> {
    use std::arch::is_aarch64_feature_detected as has;
    let known = [
        ("neon", has!("neon")),
        ("fp16", has!("fp16")),
        ("dotprod", has!("dotprod")),
        ("i8mm", has!("i8mm")),
        ("bf16", has!("bf16")),
        ("sve", has!("sve")),
    ];
    named(&known)
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn cpu_features() -> Vec<String> {
    Vec::new()
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn named(known: &[(&str, bool)]) -> Vec<String> {
    let present = known.iter().filter(|(_, is_present)| *is_present);
    present.map(|(name, _)| (*name).to_owned()).collect()
}
