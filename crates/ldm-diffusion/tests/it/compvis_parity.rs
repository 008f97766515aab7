//! Small CompVis models: outputs of U-Net and conditioner from the tensors of a checkpoint.

use std::{collections::BTreeMap, fs};

use crate::{
    common::{
        Tensors, assert_relative, fixture, floats, json, load_bytes, safetensors_bytes, values,
    },
    compvis::parse,
};
use burn::prelude::*;
use burn_store::ModuleSnapshot;
use ldm_diffusion::{ClassEmbedderConfig, SpatialRescalerConfig, UNet, compvis::compvis_keys};
use ldm_nn::weights::{KeyPair, Layout};

const TOLERANCE: f32 = 5e-5;

/// The tensors of one part ("unet", "ema" or "cond") of a fixture's `model.ckpt`, under CompVis' names.
fn checkpoint(case: &str, part: &str) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let file = fs::read(fixture(&format!("compvis/{case}/model.ckpt"))).unwrap();
    let places = json(&format!("compvis/{case}/tensors.json"));
    (places[part].as_object().unwrap().iter())
        .map(|(name, place)| {
            let start = place[0].as_u64().unwrap() as usize;
            let shape: Vec<usize> = (place[1].as_array().unwrap().iter())
                .map(|size| size.as_u64().unwrap() as usize)
                .collect();
            let end = start + 4 * shape.iter().product::<usize>();
            let values = floats(&file[start..end]);
            (name.clone(), (shape, values))
        })
        .collect()
}

/// A tensor under diffusers' name and in its layout.
fn to_diffusers(
    pair: &KeyPair,
    (shape, values): &(Vec<usize>, Vec<f32>),
) -> (Vec<usize>, Vec<f32>) {
    match pair.layout {
        Layout::Same => (shape.clone(), values.clone()),
        Layout::Pointwise { .. } => (shape[..2].to_vec(), values.clone()),
        Layout::Qkv { part, heads } => {
            let rows = shape[0] / 3;
            let columns = shape.get(1).copied();
            let width = rows / heads * columns.unwrap_or(1);
            let values = (0..heads)
                .flat_map(|head| &values[(3 * head + part) * width..][..width])
                .copied();
            (
                [rows].into_iter().chain(columns).collect(),
                values.collect(),
            )
        }
    }
}

/// `module` with the tensors of `keys` from a checkpoint, none of which may be left over.
fn load<M: ModuleSnapshot>(
    module: M,
    keys: &[KeyPair],
    tensors: &BTreeMap<String, (Vec<usize>, Vec<f32>)>,
) -> M {
    let translated = (keys.iter())
        .map(|pair| {
            (
                pair.diffusers.clone(),
                to_diffusers(pair, &tensors[&pair.compvis]),
            )
        })
        .collect();
    for name in tensors.keys() {
        assert!(
            keys.iter().any(|pair| pair.compvis == *name),
            "{name} is left over"
        );
    }
    load_bytes(module, safetensors_bytes(&translated))
}

fn load_unet(case: &str, part: &str, params: &str) -> UNet {
    let config = parse(params).to_config().unwrap();
    let keys = compvis_keys(&config, false);
    load(config.init(&Device::flex()), &keys, &checkpoint(case, part))
}

/// Checks `PREFIX.out`, and what else there is, against `unet`.
fn assert_outputs_match(
    case: &str,
    prefix: &str,
    unet: &UNet,
    context: Option<Tensor<3>>,
    uncond_context: Option<Tensor<3>>,
) {
    let device = Device::flex();
    let tensors = Tensors::read(&format!("compvis/{case}/unet.safetensors"), &device);
    let x: Tensor<4> = tensors.get("unet.x");
    for (name, context) in [
        (format!("{prefix}.out"), context.clone()),
        (format!("{prefix}.out_uncond"), uncond_context),
    ] {
        if !tensors.contains(&name) {
            continue;
        }
        let times = tensors.values("unet.timesteps");
        let outputs = (times.iter())
            .map(|t| Tensor::<1>::full([2], *t, &device))
            .flat_map(|t| values(unet.forward(x.clone(), t, context.clone())));
        let outputs: Vec<f32> = outputs.collect();
        assert_relative(
            &format!("{case} {name}"),
            &outputs,
            tensors.values(&name),
            TOLERANCE,
        );
    }
    let name = format!("{prefix}.out_mixed_t");
    let output = values(unet.forward(x, tensors.get("unet.mixed_t"), context));
    assert_relative(
        &format!("{case} {name}"),
        &output,
        tensors.values(&name),
        TOLERANCE,
    );
}

#[test]
fn unconditional_unet_matches() {
    let unet = load_unet(
        "uncond-vq-f4",
        "unet",
        r#"{"image_size": 8, "in_channels": 3, "out_channels": 3, "model_channels": 32,
            "attention_resolutions": [2], "num_res_blocks": 1, "channel_mult": [1, 2],
            "num_head_channels": 16}"#,
    );
    assert_outputs_match("uncond-vq-f4", "unet", &unet, None, None);
}

#[test]
fn unet_with_resnets_between_the_levels_matches_with_either_weights() {
    for (part, prefix) in [("unet", "unet"), ("ema", "unet_ema")] {
        let unet = load_unet(
            "uncond-kl",
            part,
            r#"{"image_size": 8, "in_channels": 4, "out_channels": 4, "model_channels": 32,
                "attention_resolutions": [1, 2], "num_res_blocks": 1, "channel_mult": [1, 1],
                "num_heads": 8, "use_scale_shift_norm": true, "resblock_updown": true}"#,
        );
        assert_outputs_match("uncond-kl", prefix, &unet, None, None);
    }
}

#[test]
fn semantic_unet_and_its_condition_match() {
    let case = "semantic-vq-f4";
    let unet = load_unet(
        case,
        "unet",
        r#"{"image_size": 8, "in_channels": 6, "out_channels": 3, "model_channels": 32,
            "attention_resolutions": [32, 16, 8], "num_res_blocks": 1, "channel_mult": [1, 1, 1],
            "num_heads": 8}"#,
    );
    let device = Device::flex();
    let config: SpatialRescalerConfig =
        serde_json::from_str(r#"{"n_stages": 2, "in_channels": 13, "out_channels": 3}"#).unwrap();
    let rescaler = load(
        config.init(&device),
        &config.compvis_keys(),
        &checkpoint(case, "cond"),
    );
    let tensors = Tensors::read(&format!("compvis/{case}/unet.safetensors"), &device);
    let labels: Tensor<3> = tensors.get("cond.label_map");
    let rescaled = rescaler.forward_labels(labels.int());
    let expected = tensors.values("cond.rescaled");
    assert_relative(
        "cond.rescaled",
        &values(rescaled.clone()),
        expected,
        TOLERANCE,
    );

    let x: Tensor<4> = tensors.get("unet.x");
    let x = Tensor::cat(vec![x, rescaled], 1);
    let times = tensors.values("unet.timesteps");
    let outputs: Vec<f32> = (times.iter())
        .map(|t| Tensor::<1>::full([2], *t, &device))
        .flat_map(|t| values(unet.forward(x.clone(), t, None)))
        .collect();
    assert_relative("unet.out", &outputs, tensors.values("unet.out"), TOLERANCE);
    let output = values(unet.forward(x, tensors.get("unet.mixed_t"), None));
    assert_relative(
        "unet.out_mixed_t",
        &output,
        tensors.values("unet.out_mixed_t"),
        TOLERANCE,
    );
}

#[test]
fn class_unet_and_its_condition_match() {
    let case = "class-vq-f4";
    let unet = load_unet(
        case,
        "unet",
        r#"{"image_size": 8, "in_channels": 3, "out_channels": 3, "model_channels": 32,
            "attention_resolutions": [1], "num_res_blocks": 1, "channel_mult": [1, 2], "num_heads": 1,
            "use_spatial_transformer": true, "transformer_depth": 1, "context_dim": 24}"#,
    );
    let device = Device::flex();
    let config: ClassEmbedderConfig =
        serde_json::from_str(r#"{"n_classes": 11, "embed_dim": 24, "key": "class_label"}"#)
            .unwrap();
    let embedder = load(
        config.init(&device),
        &config.compvis_keys(),
        &checkpoint(case, "cond"),
    );
    let tensors = Tensors::read(&format!("compvis/{case}/unet.safetensors"), &device);
    let context = |ids: &str, expected: &str| {
        let ids: Tensor<1> = tensors.get(ids);
        let context = embedder.forward(ids.int());
        assert_eq!(context.dims(), [2, 1, 24]);
        assert_eq!(
            values(context.clone()),
            tensors.values(expected),
            "{expected}"
        );
        context
    };
    let uncond_ids = tensors.values("cond.uncond_class_ids");
    assert!((uncond_ids.iter()).all(|id| *id == config.unconditional_class() as f32));
    let conditional = context("cond.class_ids", "cond.context");
    let unconditional = context("cond.uncond_class_ids", "cond.uncond_context");
    assert_outputs_match(case, "unet", &unet, Some(conditional), Some(unconditional));
}

#[test]
fn text_unet_matches() {
    let case = "text-kl-f8";
    let unet = load_unet(
        case,
        "unet",
        r#"{"image_size": 8, "in_channels": 4, "out_channels": 4, "model_channels": 32,
            "attention_resolutions": [2, 1], "num_res_blocks": 1, "channel_mult": [1, 1], "num_heads": 8,
            "use_spatial_transformer": true, "transformer_depth": 1, "context_dim": 8,
            "use_checkpoint": true, "legacy": false}"#,
    );
    let tensors = Tensors::read(&format!("compvis/{case}/unet.safetensors"), &Device::flex());
    let context = tensors.get("text.embedding");
    let uncond_context = tensors.get("text.uncond_embedding");
    assert_outputs_match(case, "unet", &unet, Some(context), Some(uncond_context));
}
