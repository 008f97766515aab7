//! Names of the weights on disk: diffusers', except where one can't be a field of a struct.
//!
//! A store must also drop the names of enum variants (`skip_enum_variants(true)` in burn-store), which stand for diffusers'
//! choice of a class in the same place.

/// diffusers' key to ours: a regular expression and its replacement.
pub const KEY_MAP: &[(&str, &str)] = &[
    (r"\.ff\.net\.0\.proj\.", ".ff.proj_in."),
    (r"\.ff\.net\.2\.", ".ff.proj_out."),
];

/// The inverse of [`KEY_MAP`], for writing.
pub const KEY_MAP_OUT: &[(&str, &str)] = &[
    (r"\.ff\.proj_in\.", ".ff.net.0.proj."),
    (r"\.ff\.proj_out\.", ".ff.net.2."),
];
