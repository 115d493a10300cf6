//! Where the tail layers run.

use super::ConfigError;

/// Where the tail layers run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On the first GPU where there is one, otherwise on the CPU.
    Auto,
    /// On the CPU.
    Cpu,
    /// On the NVIDIA GPU of this number.
    Cuda(usize),
}

impl Place {
    pub(super) fn named(device: &str) -> Result<Self, ConfigError> {
        let ordinal = device.strip_prefix("cuda:").map(str::parse);
        match (device, ordinal) {
            ("cpu", _) => Ok(Self::Cpu),
            ("auto", _) => Ok(Self::Auto),
            (_, Some(Ok(ordinal))) if cfg!(feature = "cuda") => Ok(Self::Cuda(ordinal)),
            (_, Some(Ok(_))) => Err(ConfigError::NoCuda {
                device: device.to_owned(),
            }),
            _ => Err(ConfigError::Value {
                option: "device",
                got: device.to_owned(),
                expected: "auto, cpu or cuda:N".to_owned(),
            }),
        }
    }
}
