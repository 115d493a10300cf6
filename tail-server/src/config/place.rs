//! Where the tail layers run.

use super::ConfigError;

/// Where the tail layers run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// On the first GPU where there is one, otherwise on the CPU.
    Auto,
    /// On the CPU.
    Cpu,
    /// On the NVIDIA GPUs of these numbers, each with a range of the layers, in this order. At least one; none twice.
    Cuda(Vec<usize>),
}

impl Place {
    pub(super) fn named(device: &str) -> Result<Self, ConfigError> {
        match (device, ordinals(device)) {
            ("cpu", _) => Ok(Self::Cpu),
            ("auto", _) => Ok(Self::Auto),
            (_, Some(ordinals)) if cfg!(feature = "cuda") => Ok(Self::Cuda(ordinals)),
            (_, Some(_)) => Err(ConfigError::NoCuda {
                device: device.to_owned(),
            }),
            _ => Err(ConfigError::Value {
                option: "device",
                got: device.to_owned(),
                expected:
                    "auto, cpu or cuda:N, or several of these GPUs separated by commas, none twice"
                        .to_owned(),
            }),
        }
    }
}

/// The numbers of `cuda:N,cuda:M`; `None` for anything else, and where a number comes twice.
fn ordinals(device: &str) -> Option<Vec<usize>> {
    let mut ordinals = Vec::new();
    for gpu in device.split(',') {
        let ordinal = gpu.strip_prefix("cuda:")?.parse().ok()?;
        if ordinals.contains(&ordinal) {
            return None;
        }
        ordinals.push(ordinal);
    }
    Some(ordinals)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_are_a_list_of_numbers_in_their_order() {
        assert_eq!(ordinals("cuda:3"), Some(vec![3]));
        assert_eq!(ordinals("cuda:1,cuda:0,cuda:12"), Some(vec![1, 0, 12]));
    }

    #[test]
    fn a_list_that_names_a_gpu_twice_or_something_else_is_none() {
        for device in [
            "",
            "cuda",
            "cuda:",
            "cuda:-1",
            "cuda:0,",
            "cuda:0,1",
            "cuda:0,cpu",
            "cuda:0, cuda:1",
            "cuda:0,cuda:00",
        ] {
            assert_eq!(ordinals(device), None, "{device}");
        }
    }
}
