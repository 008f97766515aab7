//! Names of the weights on disk: diffusers', except where one can't be a field of a struct.
//!
//! A store must also drop the names of enum variants (`skip_enum_variants(true)` in burn-store), which stand for diffusers'
//! choice of a class in the same place.

/// diffusers' key to ours: a regular expression and its replacement. The last four are names of plain attention in old files.
pub const KEY_MAP: &[(&str, &str)] = &[
    (r"\.ff\.net\.0\.proj\.", ".ff.proj_in."),
    (r"\.ff\.net\.2\.", ".ff.proj_out."),
    (r"\.attentions\.(\d+)\.query\.", ".attentions.$1.to_q."),
    (r"\.attentions\.(\d+)\.key\.", ".attentions.$1.to_k."),
    (r"\.attentions\.(\d+)\.value\.", ".attentions.$1.to_v."),
    (
        r"\.attentions\.(\d+)\.proj_attn\.",
        ".attentions.$1.to_out.0.",
    ),
];

/// The inverse of [`KEY_MAP`], for writing.
pub const KEY_MAP_OUT: &[(&str, &str)] = &[
    (r"\.ff\.proj_in\.", ".ff.net.0.proj."),
    (r"\.ff\.proj_out\.", ".ff.net.2."),
];
