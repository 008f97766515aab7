use thiserror::Error;

/// A configuration that describes no valid model or objective.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum ConfigError {
    /// A number that must be at least one is zero.
    #[error("`{field}` is 0; it must be at least 1")]
    Zero {
        /// The field's name in the configuration.
        field: &'static str,
    },
    /// A number of channels, layers or codes that no model has.
    #[error("`{field}` is {found}; it must be at most 1048576")]
    TooLarge {
        /// The field's name in the configuration.
        field: &'static str,
        /// The number found.
        found: usize,
    },
    /// Lists that describe the same levels have different lengths.
    #[error(
        "`{field}` has {found} entries, but `block_out_channels` has {expected}: give one entry per resolution level"
    )]
    LevelCount {
        /// The field's name in the configuration.
        field: &'static str,
        /// Entries in that field.
        found: usize,
        /// Entries in `block_out_channels`.
        expected: usize,
    },
    /// More levels than any image can be halved.
    #[error(
        "`block_out_channels` has {0} entries; each but the last halves the image, and 17 are the most"
    )]
    TooManyLevels(usize),
    /// A channel count that the group norms can't divide.
    #[error(
        "`block_out_channels[{level}]` is {channels}, which `norm_num_groups` = {groups} does not divide"
    )]
    Groups {
        /// Index into `block_out_channels`.
        level: usize,
        /// The channel count there.
        channels: usize,
        /// The configured number of groups.
        groups: usize,
    },
    /// A real number outside its range.
    #[error("`{field}` is {value}; it must be {range}")]
    Range {
        /// The field's name in the configuration.
        field: &'static str,
        /// The value found.
        value: f64,
        /// What is allowed, in words.
        range: &'static str,
    },
    /// A latent shift, which no latent diffusion model of the paper uses.
    #[error(
        "`shift_factor` is {0}; only autoencoders without a latent shift (null or 0) are supported"
    )]
    ShiftFactor(f64),
    /// Latents given by the numbers of their codes, which diffusion models don't use.
    #[error(
        "`lookup_from_codebook` is true; only decoders of latents, not of code numbers, are supported"
    )]
    LookupFromCodebook,
    /// A perceptual weight without the network that the term needs.
    #[error(
        "`perceptual_weight` is {0}, but there is no perceptual network: load one, or set the weight to 0"
    )]
    PerceptualNetworkMissing(f64),
}
