//! Where the layers of this device run.

use std::str::FromStr;

/// Where the layers of this device run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// On the first GPU where there is one, otherwise on the CPU.
    #[default]
    Auto,
    /// On the CPU.
    Cpu,
    /// On the NVIDIA GPU of this number.
    Cuda(usize),
}

/// The text names no place for layers, or none in this build.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// Not the name of a device.
    #[error("expected auto, cpu or cuda:N")]
    Name,
    /// A CUDA device in a build without CUDA.
    #[error("this build has no CUDA; use --device cpu")]
    NoCuda,
}

impl FromStr for Place {
    type Err = PlaceError;

    fn from_str(device: &str) -> Result<Self, PlaceError> {
        let ordinal = device.strip_prefix("cuda:").map(str::parse);
        match (device, ordinal) {
            ("cpu", _) => Ok(Self::Cpu),
            ("auto", _) => Ok(Self::Auto),
            (_, Some(Ok(ordinal))) if cfg!(feature = "cuda") => Ok(Self::Cuda(ordinal)),
            (_, Some(Ok(_))) => Err(PlaceError::NoCuda),
            _ => Err(PlaceError::Name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_the_cpu_a_gpus_number_or_what_there_is() {
        assert_eq!("auto".parse(), Ok(Place::default()));
        assert_eq!("cpu".parse(), Ok(Place::Cpu));
        for device in ["", "gpu", "cuda", "cuda:", "cuda:-1", "cuda:0,cuda:1"] {
            assert_eq!(device.parse::<Place>(), Err(PlaceError::Name), "{device}");
        }
    }

    #[test]
    fn a_gpu_is_a_place_in_a_build_with_cuda() {
        let expected = match cfg!(feature = "cuda") {
            true => Ok(Place::Cuda(1)),
            false => Err(PlaceError::NoCuda),
        };
        assert_eq!("cuda:1".parse(), expected);
    }
}
