//! How a codec is named: in text, and in a message.

use std::fmt;
use std::str::FromStr;

use super::{Codec, DEFAULT_GROUP_SIZE};
use crate::error::CodecError;
use crate::message::{self, CodecKind};

const GROUP_SIZES: &str = "1 to 65535";

impl Codec {
    fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Int8 { .. } => "int8",
            Self::Int4 { .. } => "int4",
            Self::Tcq4 => "tcq4",
            Self::Tcq3 => "tcq3",
        }
    }

    /// Refuses the group size 0, which the type allows.
    pub(super) fn checked(self) -> Result<Self, CodecError> {
        match self {
            Self::Int8 { group_size: 0 } | Self::Int4 { group_size: 0 } => {
                Err(CodecError::GroupSize {
                    codec: self.name(),
                    expected: GROUP_SIZES,
                    got: 0,
                })
            }
            _ => Ok(self),
        }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Int8 { group_size } | Self::Int4 { group_size }
                if group_size != DEFAULT_GROUP_SIZE =>
            {
                write!(formatter, "{}:{group_size}", self.name())
            }
            _ => formatter.write_str(self.name()),
        }
    }
}

impl FromStr for Codec {
    type Err = CodecError;

    fn from_str(text: &str) -> Result<Self, CodecError> {
        let unknown = || CodecError::UnknownName {
            got: text.chars().take(32).collect(),
        };
        let (name, group_size) = match text.split_once(':') {
            Some((name, digits)) => (name, Some(digits.parse::<u16>().map_err(|_| unknown())?)),
            None => (text, None),
        };
        match (name, group_size) {
            ("f32", None) => Ok(Self::F32),
            ("f16", None) => Ok(Self::F16),
            ("bf16", None) => Ok(Self::Bf16),
            ("tcq4", None) => Ok(Self::Tcq4),
            ("tcq3", None) => Ok(Self::Tcq3),
            ("int8", _) => Self::Int8 {
                group_size: group_size.unwrap_or(DEFAULT_GROUP_SIZE),
            }
            .checked(),
            ("int4", _) => Self::Int4 {
                group_size: group_size.unwrap_or(DEFAULT_GROUP_SIZE),
            }
            .checked(),
            _ => Err(unknown()),
        }
    }
}

impl From<Codec> for message::Codec {
    fn from(codec: Codec) -> Self {
        let (kind, group_size) = match codec {
            Codec::F32 => (CodecKind::F32, 0),
            Codec::F16 => (CodecKind::F16, 0),
            Codec::Bf16 => (CodecKind::Bf16, 0),
            Codec::Int8 { group_size } => (CodecKind::Int8, group_size),
            Codec::Int4 { group_size } => (CodecKind::Int4, group_size),
            Codec::Tcq4 => (CodecKind::Tcq4, 0),
            Codec::Tcq3 => (CodecKind::Tcq3, 0),
        };
        Self {
            kind: kind.into(),
            group_size: group_size.into(),
        }
    }
}

impl TryFrom<message::Codec> for Codec {
    type Error = CodecError;

    fn try_from(codec: message::Codec) -> Result<Self, CodecError> {
        let unknown = CodecError::UnknownKind { got: codec.kind };
        let kind = CodecKind::try_from(codec.kind).map_err(|_| unknown.clone())?;
        let grouped = |name| {
            u16::try_from(codec.group_size).map_err(|_| CodecError::GroupSize {
                codec: name,
                expected: GROUP_SIZES,
                got: codec.group_size,
            })
        };
        let ungrouped = match kind {
            CodecKind::Unspecified => return Err(unknown),
            CodecKind::Int8 => {
                return Self::Int8 {
                    group_size: grouped("int8")?,
                }
                .checked();
            }
            CodecKind::Int4 => {
                return Self::Int4 {
                    group_size: grouped("int4")?,
                }
                .checked();
            }
            CodecKind::F32 => Self::F32,
            CodecKind::F16 => Self::F16,
            CodecKind::Bf16 => Self::Bf16,
            CodecKind::Tcq4 => Self::Tcq4,
            CodecKind::Tcq3 => Self::Tcq3,
        };
        if codec.group_size != 0 {
            let (codec, got) = (ungrouped.name(), codec.group_size);
            return Err(CodecError::GroupSize {
                codec,
                expected: "0",
                got,
            });
        }
        Ok(ungrouped)
    }
}
