//! CompVis' U-Nets: configurations, names and shapes of the published models.

use std::{collections::BTreeMap, fs};

use crate::common::{fixture, shapes};
use burn::prelude::*;
use ldm_diffusion::{
    CompVisUNet, UNetConfig,
    compvis::compvis_keys,
    unet::{MidBlockType, PerLevel, ResampleType, TimeScaleShift},
};
use ldm_nn::weights::Layout;

/// Published configurations: listing, preset, `unet_config.params` and parameter count.
fn published() -> [(&'static str, UNetConfig, &'static str, usize); 6] {
    [
        (
            "celebahq-ldm-vq-4",
            UNetConfig::celebahq(),
            r#"{"image_size": 64, "in_channels": 3, "out_channels": 3, "model_channels": 224,
                "attention_resolutions": [8, 4, 2], "num_res_blocks": 2, "channel_mult": [1, 2, 3, 4],
                "num_head_channels": 32}"#,
            274_056_163,
        ),
        (
            "cin-ldm-vq-f8",
            UNetConfig::imagenet_f8(),
            r#"{"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 256,
                "attention_resolutions": [4, 2, 1], "num_res_blocks": 2, "channel_mult": [1, 2, 4],
                "num_head_channels": 32, "use_spatial_transformer": true, "transformer_depth": 1,
                "context_dim": 512}"#,
            394_984_196,
        ),
        (
            "cin256-v2",
            UNetConfig::imagenet_f4(),
            r#"{"image_size": 64, "in_channels": 3, "out_channels": 3, "model_channels": 192,
                "attention_resolutions": [8, 4, 2], "num_res_blocks": 2, "channel_mult": [1, 2, 3, 5],
                "num_heads": 1, "use_spatial_transformer": true, "transformer_depth": 1,
                "context_dim": 512}"#,
            400_920_579,
        ),
        (
            "semantic_synthesis256",
            UNetConfig::landscapes(),
            r#"{"image_size": 64, "in_channels": 6, "out_channels": 3, "model_channels": 128,
                "attention_resolutions": [32, 16, 8], "num_res_blocks": 2, "channel_mult": [1, 4, 8],
                "num_heads": 8}"#,
            215_229_315,
        ),
        (
            "lsun_churches-ldm-kl-8",
            UNetConfig::lsun_churches(),
            r#"{"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 192,
                "attention_resolutions": [1, 2, 4, 8], "num_res_blocks": 2, "channel_mult": [1, 2, 2, 4, 4],
                "num_heads": 8, "use_scale_shift_norm": true, "resblock_updown": true}"#,
            294_966_916,
        ),
        (
            "txt2img-1p4B-eval",
            UNetConfig::text_to_image(),
            r#"{"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320,
                "attention_resolutions": [4, 2, 1], "num_res_blocks": 2, "channel_mult": [1, 2, 4, 4],
                "num_heads": 8, "use_spatial_transformer": true, "transformer_depth": 1,
                "context_dim": 1280, "use_checkpoint": true, "legacy": false}"#,
            872_300_484,
        ),
    ]
}

pub(crate) fn parse(params: &str) -> CompVisUNet {
    serde_json::from_str(params).unwrap()
}

/// Name and shape of every tensor of a published U-Net.
fn listing(name: &str) -> BTreeMap<String, Vec<usize>> {
    let path = fixture(&format!("state_dict_shapes/{name}.unet.txt"));
    (fs::read_to_string(path).unwrap().lines())
        .map(|line| {
            let (name, shape) = line.split_once(' ').unwrap();
            let shape = shape.split(' ').map(|size| size.parse().unwrap());
            (name.to_owned(), shape.collect())
        })
        .collect()
}

/// CompVis' name and shape of every tensor of `config`'s network.
fn compvis_shapes(config: &UNetConfig) -> BTreeMap<String, Vec<usize>> {
    let mut ours = shapes(&config.init(&Device::flex()));
    let mut theirs = BTreeMap::new();
    for pair in compvis_keys(config, false) {
        let mut shape = (ours.remove(&pair.diffusers))
            .unwrap_or_else(|| panic!("{} isn't in the network", pair.diffusers));
        match pair.layout {
            Layout::Same => {}
            Layout::Pointwise { axes } => shape.extend(vec![1; axes]),
            Layout::Qkv { .. } => {
                shape[0] *= 3;
                if shape.len() == 2 {
                    shape.push(1);
                }
            }
        }
        let before = theirs.insert(pair.compvis.clone(), shape.clone());
        let repeated = matches!(pair.layout, Layout::Qkv { part: 1.., .. });
        assert_eq!(before, repeated.then_some(shape), "{}", pair.compvis);
    }
    assert!(ours.is_empty(), "without a CompVis name: {ours:?}");
    theirs
}

#[test]
fn published_networks_have_every_name_shape_and_parameter() {
    for (name, preset, params, count) in published() {
        let config = parse(params).to_config().unwrap();
        assert_eq!(config, preset, "{name}");
        let theirs = compvis_shapes(&config);
        assert_eq!(theirs, listing(name), "{name}");
        let counted: usize = (theirs.values())
            .map(|shape| shape.iter().product::<usize>())
            .sum();
        assert_eq!(counted, count, "{name}");
    }
}

#[test]
fn published_networks_are_exported_and_guessed() {
    for (name, preset, _, _) in published() {
        let exported = CompVisUNet::from_config(&preset).unwrap();
        assert_eq!(exported.to_config().unwrap(), preset, "{name}");
        let json = serde_json::to_string(&exported).unwrap();
        assert_eq!(parse(&json), exported, "{name}");

        let guessed = CompVisUNet::guess(&listing(name)).unwrap();
        let unsized_preset = UNetConfig {
            sample_size: None,
            ..preset
        };
        assert_eq!(guessed.to_config().unwrap(), unsized_preset, "{name}");
    }
}

#[test]
fn what_shapes_cannot_say_is_asked_for() {
    let mut tensors = listing("celebahq-ldm-vq-4");
    for shape in tensors.values_mut() {
        for size in shape.iter_mut().filter(|size| **size % 224 == 0) {
            *size = *size / 224 * 32;
        }
    }
    let error = CompVisUNet::guess(&tensors).unwrap_err().to_string();
    assert!(error.contains("yaml"), "{error}");
    tensors.remove("out.2.weight");
    let error = CompVisUNet::guess(&tensors).unwrap_err().to_string();
    assert!(error.contains("`out.2.weight` is missing"), "{error}");
}

/// The first channels of a small network, of every kind.
const SMALL: &str =
    r#""in_channels": 3, "out_channels": 3, "model_channels": 32, "num_res_blocks": 1"#;

#[test]
fn heads_follow_from_their_number_or_width() {
    let head_dim = |rest: &str| {
        let params = format!("{{{SMALL}, {rest}}}");
        let config = parse(&params).to_config().unwrap();
        let back = CompVisUNet::from_config(&config).unwrap();
        assert_eq!(
            back.to_config().unwrap().attention_head_dim,
            config.attention_head_dim
        );
        config.attention_head_dim.unwrap()
    };
    let two_levels = r#""attention_resolutions": [1], "channel_mult": [1, 2]"#;
    let transformer = r#""use_spatial_transformer": true, "context_dim": 6"#;
    for (rest, expected) in [
        // Widths, as the attention is plain; the middle attends in any case.
        (
            format!(r#"{two_levels}, "num_heads": 4"#),
            PerLevel::Each(vec![8, 16]),
        ),
        (
            format!(r#"{two_levels}, "num_heads": 4, "legacy": false, "num_heads_upsample": 2"#),
            PerLevel::Each(vec![8, 16]),
        ),
        (
            format!(r#"{two_levels}, "num_head_channels": 16"#),
            PerLevel::All(16),
        ),
        (
            format!(r#"{two_levels}, "num_heads": -1, "num_head_channels": 16"#),
            PerLevel::All(16),
        ),
        (
            r#""attention_resolutions": [], "channel_mult": [1, 2], "num_heads": 4"#.into(),
            PerLevel::All(16),
        ),
        // Numbers, as there are transformers.
        (
            format!(r#"{two_levels}, {transformer}, "num_heads": 4"#),
            PerLevel::All(4),
        ),
        (
            format!(r#"{two_levels}, {transformer}, "num_head_channels": 16"#),
            PerLevel::Each(vec![2, 4]),
        ),
    ] {
        assert_eq!(head_dim(&rest), expected, "{rest}");
    }
}

#[test]
fn each_attention_order_has_its_layout() {
    let config = parse(&format!(
        r#"{{{SMALL}, "attention_resolutions": [], "channel_mult": [1], "num_heads": 4}}"#
    ))
    .to_config()
    .unwrap();
    for (new, heads) in [(false, 4), (true, 1)] {
        let keys = compvis_keys(&config, new);
        let value = (keys.iter())
            .find(|pair| pair.diffusers == "mid_block.attentions.0.to_v.weight")
            .unwrap();
        assert_eq!(value.compvis, "middle_block.1.qkv.weight");
        assert_eq!(value.layout, Layout::Qkv { part: 2, heads });
    }
}

#[test]
fn what_has_no_counterpart_here_is_named() {
    for (rest, named) in [
        (
            r#""num_heads": 4, "attention_resolution": [1]"#,
            "attention_resolution",
        ),
        (r#""num_heads": 0"#, "0 heads"),
        (r#""dropout": 0.1"#, "`num_heads` is missing"),
        (r#""num_heads": 5"#, "`num_heads` is 5"),
        (
            r#""num_heads": 4, "num_heads_upsample": 2"#,
            "`num_heads_upsample` is 2",
        ),
        (
            r#""num_heads": 4, "channel_mult": [2, 4]"#,
            "`channel_mult`",
        ),
        (r#""num_heads": 4, "channel_mult": []"#, "`channel_mult`"),
        (r#""num_heads": 4, "dims": 3"#, "`dims` is 3"),
        (
            r#""num_heads": 4, "conv_resample": false"#,
            "`conv_resample`",
        ),
        (r#""num_heads": 4, "n_embed": 16"#, "`n_embed`"),
        (r#""num_heads": 4, "context_dim": 16"#, "`context_dim`"),
        (
            r#""num_heads": 4, "use_spatial_transformer": true"#,
            "`context_dim` is missing",
        ),
        (
            r#""num_heads": 4, "use_spatial_transformer": true, "context_dim": 6, "transformer_depth": 0"#,
            "`transformer_depth` is 0",
        ),
    ] {
        let params = format!(r#"{{{SMALL}, "attention_resolutions": [1], {rest}}}"#);
        let error = match serde_json::from_str::<CompVisUNet>(&params) {
            Ok(params) => params.to_config().unwrap_err().to_string(),
            Err(error) => error.to_string(),
        };
        assert!(error.contains(named), "{rest}: {error}");
    }
}

#[test]
fn what_has_no_counterpart_there_is_named() {
    type Case = (&'static str, fn() -> UNetConfig, fn(&mut UNetConfig));
    let table: [Case; 10] = [
        ("norm_num_groups", UNetConfig::celebahq, |c| {
            c.norm_num_groups = 16
        }),
        ("downsample_padding", UNetConfig::celebahq, |c| {
            c.downsample_padding = 0
        }),
        ("add_attention", UNetConfig::celebahq, |c| {
            c.add_attention = false
        }),
        ("mid_block_type", UNetConfig::text_to_image, |c| {
            c.mid_block_type = Some(MidBlockType::UNetMidBlock2D);
        }),
        ("attn_norm_num_groups", UNetConfig::celebahq, |c| {
            c.resnet_time_scale_shift = TimeScaleShift::ScaleShift;
        }),
        ("up_block_types", UNetConfig::celebahq, |c| {
            c.up_block_types.reverse()
        }),
        ("down_block_types", UNetConfig::celebahq, |c| {
            c.downsample_type = ResampleType::Resnet;
        }),
        (
            "transformer_layers_per_block",
            UNetConfig::text_to_image,
            |c| {
                c.transformer_layers_per_block = PerLevel::Each(vec![1, 2, 1, 1]);
            },
        ),
        ("attention_head_dim", UNetConfig::celebahq, |c| {
            c.attention_head_dim = Some(PerLevel::Each(vec![8, 8, 16, 64]));
        }),
        ("block_out_channels", UNetConfig::landscapes, |c| {
            c.block_out_channels[1] = 448
        }),
    ];
    for (field, preset, change) in table {
        let mut config = preset();
        change(&mut config);
        let error = CompVisUNet::from_config(&config).unwrap_err().to_string();
        assert!(error.contains(&format!("`{field}`")), "{field}: {error}");
    }
}
