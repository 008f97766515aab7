/// What can be wrong with a configuration of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A field has a value that makes no sense or that this crate has no code for.
    #[error("{subject}: `{field}` {problem}")]
    Invalid {
        /// What is configured: "U-Net", "CompVis U-Net", "class embedder", "noise schedule" and the like.
        subject: &'static str,
        /// Name of the field, as it stands in the file.
        field: String,
        /// What is wrong with it and what would be right.
        problem: String,
    },
    /// A configuration file isn't the JSON that it should be.
    #[error("{file} is not a valid configuration")]
    Json {
        /// Usual name of the file.
        file: &'static str,
        /// What the parser objects to, with line and column.
        source: serde_json::Error,
    },
}

impl Error {
    pub(crate) fn invalid(
        subject: &'static str,
        field: impl Into<String>,
        problem: impl Into<String>,
    ) -> Self {
        Self::Invalid {
            subject,
            field: field.into(),
            problem: problem.into(),
        }
    }
}
