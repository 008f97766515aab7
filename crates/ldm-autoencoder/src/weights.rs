//! Which key of a published checkpoint is which field here.
//!
//! Each table is a list of (regular expression on the file's key, replacement). What a table doesn't mention has the same
//! name in the file: the fields of [`AutoencoderKl`](crate::AutoencoderKl) and [`VqModel`](crate::VqModel) are diffusers' names.
//! The original code's names of a first stage are in [`compvis`](crate::compvis).

/// diffusers' `AutoencoderKL` and `VQModel` to the modules here: only the attention names of old files differ.
pub const KEY_MAP: &[(&str, &str)] = &[
    (r"\.attentions\.(\d+)\.query\.", ".attentions.$1.to_q."),
    (r"\.attentions\.(\d+)\.key\.", ".attentions.$1.to_k."),
    (r"\.attentions\.(\d+)\.value\.", ".attentions.$1.to_v."),
    (
        r"\.attentions\.(\d+)\.proj_attn\.",
        ".attentions.$1.to_out.0.",
    ),
];

/// The modules here to diffusers' `AutoencoderKL` and `VQModel`: the fields are their present names.
pub const KEY_MAP_OUT: &[(&str, &str)] = &[];

/// torchvision's VGG16 (`features.N`) and the LPIPS package's heads (`linN.model.1`) to [`Lpips`](crate::Lpips).
pub const VGG16_KEY_MAP: &[(&str, &str)] = &[
    (r"^features\.0\.", "convs.0."),
    (r"^features\.2\.", "convs.1."),
    (r"^features\.5\.", "convs.2."),
    (r"^features\.7\.", "convs.3."),
    (r"^features\.10\.", "convs.4."),
    (r"^features\.12\.", "convs.5."),
    (r"^features\.14\.", "convs.6."),
    (r"^features\.17\.", "convs.7."),
    (r"^features\.19\.", "convs.8."),
    (r"^features\.21\.", "convs.9."),
    (r"^features\.24\.", "convs.10."),
    (r"^features\.26\.", "convs.11."),
    (r"^features\.28\.", "convs.12."),
    (r"^lin(\d)\.model\.1\.", "heads.$1."),
];

/// CompVis' `NLayerDiscriminator` (`main.N`, up to five layers) to [`PatchDiscriminator`](crate::PatchDiscriminator).
///
/// Its files also hold `num_batches_tracked` counters, which nothing here needs.
pub const DISCRIMINATOR_KEY_MAP: &[(&str, &str)] = &[
    (r"^main\.0\.", "layers.0.conv."),
    (r"^main\.2\.", "layers.1.conv."),
    (r"^main\.3\.", "layers.1.norm."),
    (r"^main\.5\.", "layers.2.conv."),
    (r"^main\.6\.", "layers.2.norm."),
    (r"^main\.8\.", "layers.3.conv."),
    (r"^main\.9\.", "layers.3.norm."),
    (r"^main\.11\.", "layers.4.conv."),
    (r"^main\.12\.", "layers.4.norm."),
    (r"^main\.14\.", "layers.5.conv."),
    (r"^main\.15\.", "layers.5.norm."),
    (r"^main\.17\.", "layers.6.conv."),
];

/// [`PatchDiscriminator`](crate::PatchDiscriminator) to CompVis' `NLayerDiscriminator`.
pub const DISCRIMINATOR_KEY_MAP_OUT: &[(&str, &str)] = &[
    (r"^layers\.0\.conv\.", "main.0."),
    (r"^layers\.1\.conv\.", "main.2."),
    (r"^layers\.1\.norm\.", "main.3."),
    (r"^layers\.2\.conv\.", "main.5."),
    (r"^layers\.2\.norm\.", "main.6."),
    (r"^layers\.3\.conv\.", "main.8."),
    (r"^layers\.3\.norm\.", "main.9."),
    (r"^layers\.4\.conv\.", "main.11."),
    (r"^layers\.4\.norm\.", "main.12."),
    (r"^layers\.5\.conv\.", "main.14."),
    (r"^layers\.5\.norm\.", "main.15."),
    (r"^layers\.6\.conv\.", "main.17."),
];
