use serde_json::{Value, json};

use super::config::*;
use crate::Error;

/// More blocks than any U-Net has; a number beyond is a mistake that would only exhaust the memory.
const MOST_BLOCKS: usize = 1024;

/// Refuses the options of diffusers that change what is computed and that this crate has no code for.
pub(super) fn reject_foreign_options(config: &Value) -> Result<(), Error> {
    // Each with the values that it may have; a missing key or null will do as well.
    let built: [(&str, Value); 26] = [
        ("act_fn", json!(["silu", "swish"])),
        ("addition_embed_type", json!([])),
        ("attention_type", json!(["default"])),
        ("class_embed_type", json!(["timestep", "identity"])),
        ("class_embeddings_concat", json!([false])),
        ("conv_in_kernel", json!([3])),
        ("conv_out_kernel", json!([3])),
        ("cross_attention_norm", json!([])),
        ("downsample_type", json!(["conv", "resnet"])),
        ("dual_cross_attention", json!([false])),
        ("encoder_hid_dim", json!([])),
        ("encoder_hid_dim_type", json!([])),
        ("mid_block_only_cross_attention", json!([false])),
        ("mid_block_scale_factor", json!([1])),
        ("num_attention_heads", json!([])),
        ("only_cross_attention", json!([false])),
        ("resnet_out_scale_factor", json!([1])),
        ("resnet_skip_time_act", json!([false])),
        ("resnet_time_scale_shift", json!(["default", "scale_shift"])),
        ("reverse_transformer_layers_per_block", json!([])),
        ("time_cond_proj_dim", json!([])),
        ("time_embedding_act_fn", json!([])),
        ("time_embedding_dim", json!([])),
        ("time_embedding_type", json!(["positional"])),
        ("timestep_post_act", json!([])),
        ("upsample_type", json!(["conv", "resnet"])),
    ];
    for (key, supported) in built {
        let value = &config[key];
        let supported = supported.as_array().expect("the table has arrays");
        let is_value = |other: &Value| match (value.as_f64(), other.as_f64()) {
            (Some(value), Some(other)) => value == other,
            _ => value == other,
        };
        if value.is_null() || supported.iter().any(is_value) {
            continue;
        }
        let problem = match supported.as_slice() {
            [] => format!("is {value}, which isn't supported"),
            [only] => format!("is {value}, but only {only} is supported"),
            several => {
                let several: Vec<String> = several.iter().map(Value::to_string).collect();
                format!(
                    "is {value}, but only {} are supported",
                    several.join(" and ")
                )
            }
        };
        return Err(invalid(key, problem));
    }
    if config.get("mid_block_type").is_some_and(Value::is_null) {
        let problem = "is null, but a U-Net without a middle block isn't supported";
        return Err(invalid("mid_block_type", problem));
    }
    Ok(())
}

/// See [`UNetConfig::validate`].
pub(super) fn validate(config: &UNetConfig) -> Result<(), Error> {
    let levels = config.block_out_channels.len();
    if levels == 0 {
        return Err(invalid(
            "block_out_channels",
            "is empty: a U-Net needs at least one level",
        ));
    }
    for (field, value) in [
        ("in_channels", config.in_channels),
        ("out_channels", config.out_channels),
        ("layers_per_block", config.layers_per_block),
        ("norm_num_groups", config.norm_num_groups),
    ] {
        if value == 0 {
            return Err(invalid(field, "is 0: it must be at least 1"));
        }
    }
    let depth = config.transformer_layers_per_block.largest();
    for (field, blocks) in [
        ("layers_per_block", config.layers_per_block),
        ("transformer_layers_per_block", depth),
    ] {
        if blocks.saturating_mul(levels) > MOST_BLOCKS {
            let problem =
                format!("is {blocks}: on {levels} levels that is more than {MOST_BLOCKS} blocks");
            return Err(invalid(field, problem));
        }
    }
    for (field, length) in [
        ("down_block_types", config.down_block_types.len()),
        ("up_block_types", config.up_block_types.len()),
    ] {
        if length != levels {
            return Err(invalid(
                field,
                format!(
                    "has {length} entries, but `block_out_channels` has {levels}: one is needed per level"
                ),
            ));
        }
    }
    if let Some(channels) = (config.block_out_channels.iter())
        .find(|channels| **channels == 0 || !channels.is_multiple_of(config.norm_num_groups))
    {
        return Err(invalid(
            "block_out_channels",
            format!(
                "has {channels}, which is no multiple of `norm_num_groups` ({})",
                config.norm_num_groups
            ),
        ));
    }
    if config.downsample_padding > 1 {
        return Err(invalid(
            "downsample_padding",
            format!(
                "is {}, but only 0 and 1 are supported",
                config.downsample_padding
            ),
        ));
    }
    if config.norm_eps.is_nan() || config.norm_eps <= 0.0 {
        return Err(invalid(
            "norm_eps",
            format!("is {}: it must be positive", config.norm_eps),
        ));
    }
    let coarsest = config.block_out_channels[levels - 1];
    if (config.attn_norm_num_groups)
        .is_some_and(|groups| groups == 0 || !coarsest.is_multiple_of(groups))
    {
        return Err(invalid(
            "attn_norm_num_groups",
            format!("doesn't divide the {coarsest} channels of the middle block"),
        ));
    }
    if config.num_class_embeds == Some(0) {
        return Err(invalid(
            "num_class_embeds",
            "is 0: leave it out where there are no classes",
        ));
    }
    validate_attention(config)
}

fn validate_attention(config: &UNetConfig) -> Result<(), Error> {
    let levels = config.block_out_channels.len();
    let per_level = [
        ("attention_head_dim", config.attention_head_dim.as_ref()),
        (
            "transformer_layers_per_block",
            Some(&config.transformer_layers_per_block),
        ),
    ];
    for (field, value) in per_level {
        match value {
            Some(PerLevel::Each(values)) if values.len() != levels => {
                return Err(invalid(
                    field,
                    format!(
                        "has {} entries, but there are {levels} levels",
                        values.len()
                    ),
                ));
            }
            Some(PerLevel::Each(values)) if values.contains(&0) => {
                return Err(invalid(
                    field,
                    "has a 0: it must be at least 1 at every level",
                ));
            }
            Some(PerLevel::All(0)) => return Err(invalid(field, "is 0: it must be at least 1")),
            _ => {}
        }
    }
    let transformers = transformer_levels(config);
    if transformers.iter().any(|wanted| *wanted) && config.cross_attention_dim.unwrap_or(0) == 0 {
        return Err(invalid(
            "cross_attention_dim",
            "is missing: the transformers of the CrossAttn blocks need the width of their context",
        ));
    }
    if config.attention_head_dim.is_none() && transformers.iter().any(|wanted| *wanted) {
        return Err(invalid(
            "attention_head_dim",
            "is null: the transformers of the CrossAttn blocks need their number of heads",
        ));
    }
    let mid_and_down = marked(
        config,
        |down| down == DownBlockType::AttnDownBlock2D,
        |_| false,
        config.class_name == UNetClass::UNet2DModel
            && config.mid_block() == MidBlockType::UNetMidBlock2D
            && config.add_attention,
    );
    let up = marked(
        config,
        |_| false,
        |up| up == UpBlockType::AttnUpBlock2D,
        false,
    );
    let Some(head_dim) = config.attention_head_dim.as_ref() else {
        return Ok(());
    };
    for (level, channels) in config.block_out_channels.iter().enumerate() {
        for (attends, entry) in [
            (transformers[level] || mid_and_down[level], level),
            (up[level], config.up_width_entry(level)),
        ] {
            let divisor = head_dim.at(entry);
            if attends && !channels.is_multiple_of(divisor) {
                return Err(invalid(
                    "attention_head_dim",
                    format!(
                        "is {divisor}, which doesn't divide the {channels} channels of level {level}"
                    ),
                ));
            }
        }
    }
    Ok(())
}

/// Which levels have a transformer, counting the middle to the coarsest.
fn transformer_levels(config: &UNetConfig) -> Vec<bool> {
    marked(
        config,
        |down| down == DownBlockType::CrossAttnDownBlock2D,
        |up| up == UpBlockType::CrossAttnUpBlock2D,
        config.mid_block() == MidBlockType::UNetMidBlock2DCrossAttn,
    )
}

fn marked(
    config: &UNetConfig,
    down: impl Fn(DownBlockType) -> bool,
    up: impl Fn(UpBlockType) -> bool,
    mid: bool,
) -> Vec<bool> {
    let levels = config.block_out_channels.len();
    (0..levels)
        .map(|level| {
            down(config.down_block_types[level])
                || up(config.up_block_types[levels - 1 - level])
                || (mid && level == levels - 1)
        })
        .collect()
}

fn invalid(field: &str, problem: impl Into<String>) -> Error {
    Error::invalid("U-Net", field, problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(change: impl Fn(&mut UNetConfig)) -> String {
        let mut config = UNetConfig::text_to_image();
        change(&mut config);
        config.validate().unwrap_err().to_string()
    }

    #[test]
    fn each_mistake_names_its_field() {
        type Mistake = fn(&mut UNetConfig);
        let table: [(&str, Mistake); 12] = [
            ("block_out_channels", |c| c.block_out_channels.clear()),
            ("block_out_channels", |c| c.block_out_channels[1] = 100),
            ("down_block_types", |c| c.down_block_types.truncate(3)),
            ("up_block_types", |c| c.up_block_types.truncate(3)),
            ("layers_per_block", |c| c.layers_per_block = 0),
            ("downsample_padding", |c| c.downsample_padding = 2),
            ("cross_attention_dim", |c| c.cross_attention_dim = None),
            ("attention_head_dim", |c| {
                c.attention_head_dim = Some(PerLevel::All(7))
            }),
            ("attention_head_dim", |c| {
                c.attention_head_dim = Some(PerLevel::Each(vec![8]))
            }),
            // An up block's plain attention here reads its width from the other end of the list.
            ("attention_head_dim", |c| {
                c.up_block_types[3] = UpBlockType::AttnUpBlock2D;
                c.attention_head_dim = Some(PerLevel::Each(vec![8, 8, 8, 128]));
            }),
            ("attn_norm_num_groups", |c| {
                c.attn_norm_num_groups = Some(48)
            }),
            ("num_class_embeds", |c| c.num_class_embeds = Some(0)),
        ];
        for (field, change) in table {
            let message = message(change);
            assert!(message.contains(&format!("`{field}`")), "{message}");
        }
    }

    #[test]
    fn foreign_options_are_refused_and_harmless_ones_ignored() {
        let json = |extra: &str| {
            let config = serde_json::to_string(&UNetConfig::celebahq()).unwrap();
            config.replacen('{', &format!("{{{extra},"), 1)
        };
        let harmless = r#""mid_block_scale_factor": 1.0, "sampling_eta": 3, "act_fn": "silu", "downsample_type": null"#;
        let read = UNetConfig::from_json(&json(harmless)).unwrap();
        assert_eq!(read, UNetConfig::celebahq());
        for (extra, named) in [
            (r#""act_fn": "gelu""#, "`act_fn` is \"gelu\""),
            (
                r#""time_embedding_type": "fourier""#,
                "`time_embedding_type`",
            ),
            (r#""class_embed_type": "projection""#, "`class_embed_type`"),
            (r#""only_cross_attention": true"#, "`only_cross_attention`"),
            (r#""upsample_type": "fir""#, "only \"conv\" and \"resnet\""),
            (r#""time_embedding_dim": 64"#, "`time_embedding_dim` is 64"),
            (r#""mid_block_type": null"#, "`mid_block_type` is null"),
        ] {
            let error = UNetConfig::from_json(&json(extra)).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        for config in [UNetConfig::celebahq(), UNetConfig::text_to_image()] {
            let json = serde_json::to_string(&config).unwrap();
            assert_eq!(UNetConfig::from_json(&json).unwrap(), config);
        }
        let json = serde_json::to_string(&UNetConfig::celebahq()).unwrap();
        assert!(json.contains(r#""_class_name":"UNet2DModel""#), "{json}");
        assert!(!json.contains("cross_attention_dim"), "{json}");
    }
}
