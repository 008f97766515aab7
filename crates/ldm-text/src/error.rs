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

impl ConfigError {
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
