use thiserror::Error;

/// A configuration that describes no model.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("`{field}` is {value}; {expected}")]
pub struct ConfigError {
    /// Name of the field, as it stands in the file.
    pub field: &'static str,
    /// Its value.
    pub value: usize,
    /// What it should be, in words.
    pub expected: &'static str,
}

/// More layers than any text encoder has; a number beyond is a mistake that would only exhaust the memory.
const MOST_LAYERS: usize = 1024;

impl ConfigError {
    /// Checks that a number of layers is one that a model may have.
    pub(crate) fn refuse_too_many(field: &'static str, layers: usize) -> Result<(), Self> {
        match layers {
            ..=MOST_LAYERS => Ok(()),
            _ => Err(Self {
                field,
                value: layers,
                expected: "it may be at most 1024",
            }),
        }
    }

    /// Checks that none of the fields, by name, is 0.
    pub(crate) fn refuse_zeros(fields: &[(&'static str, usize)]) -> Result<(), Self> {
        match fields.iter().find(|(_, value)| *value == 0) {
            None => Ok(()),
            Some(&(field, value)) => Err(Self {
                field,
                value,
                expected: "it must be at least 1",
            }),
        }
    }
}
