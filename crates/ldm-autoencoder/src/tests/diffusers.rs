//! Against diffusers 0.36 (`tests/fixtures/diffusers`).

use burn::tensor::Device;

use super::{Expected, assert_close, fixture, load};
use crate::{AutoencoderKl, AutoencoderKlConfig, VqModel, VqModelConfig, weights};

const TOLERANCE: f32 = 3e-5;
/// The reference's quantised latents are `z + (code - z)`, which is the code but for rounding; ours are the code.
const ROUNDING: f32 = 2e-7;

fn model() -> AutoencoderKl {
    let json = std::fs::read_to_string(fixture("diffusers/ldm-text2im/vqvae/config.json")).unwrap();
    let config: AutoencoderKlConfig = serde_json::from_str(&json).unwrap();
    config.validate().unwrap();
    let mut model = config.init(&Device::flex());
    let path = "diffusers/ldm-text2im/vqvae/diffusion_pytorch_model.safetensors";
    load(&mut model, path, weights::KEY_MAP, "");
    model
}

#[test]
fn encodes_and_decodes_as_diffusers() {
    let model = model();
    let expected = Expected::load("diffusers/ldm-text2im/expected.safetensors");
    let posterior = model.encode(expected.tensor("in.image"));
    assert_close(posterior.mean, expected.tensor("out.vae.mean"), TOLERANCE);
    assert_close(
        posterior.logvar,
        expected.tensor("out.vae.logvar"),
        TOLERANCE,
    );
    let images = model.decode(expected.tensor("in.vae.z"));
    assert_close(images, expected.tensor("out.vae.decoded"), TOLERANCE);
}

#[test]
fn decodes_tiles_as_diffusers() {
    let model = model();
    let expected = Expected::load("diffusers/ldm-text2im/tiled.safetensors");
    for (case, tile) in [("square", 8), ("wide", 8), ("thin", 12)] {
        let latents = expected.tensor(&format!("{case}.latents"));
        let images = model.decode_tiled(latents, tile);
        assert_close(
            images,
            expected.tensor(&format!("{case}.images")),
            TOLERANCE,
        );
    }
}

fn vq_model(dir: &str) -> VqModel {
    let json = std::fs::read_to_string(fixture(&format!("{dir}/config.json"))).unwrap();
    let config: VqModelConfig = serde_json::from_str(&json).unwrap();
    let mut model = config.init(&Device::flex());
    let path = format!("{dir}/diffusion_pytorch_model.safetensors");
    load(&mut model, &path, weights::KEY_MAP, "");
    model
}

#[test]
fn encodes_quantises_and_decodes_as_diffusers() {
    let model = vq_model("diffusers/ldm-uncond/vqvae");
    let expected = Expected::load("diffusers/ldm-uncond/expected.safetensors");
    let encoded = model.encode(expected.tensor("in.image"));
    assert_close(
        encoded.clone(),
        expected.tensor("out.vq.encoded"),
        TOLERANCE,
    );
    let quantized = model.quantize(encoded.clone()).latents;
    assert_close(quantized, expected.tensor("out.vq.quantized"), ROUNDING);
    assert_close(
        model.decode(encoded),
        expected.tensor("out.vq.decoded"),
        TOLERANCE,
    );
}

/// Attention at one level and none in the middle, codes shorter than the encoder's output.
#[test]
fn a_vq_model_with_every_option_is_as_in_diffusers() {
    let model = vq_model("diffusers/vq-attention");
    let expected = Expected::load("diffusers/vq-attention/expected.safetensors");
    let encoded = model.encode(expected.tensor("image"));
    assert_close(encoded.clone(), expected.tensor("encoded"), TOLERANCE);
    let quantized = model.quantize(encoded.clone());
    let indices: Vec<i32> = quantized.indices.into_data().iter().collect();
    assert_eq!(indices, expected.integers("indices"));
    assert_close(quantized.latents, expected.tensor("quantized"), ROUNDING);
    assert_close(
        model.decode(encoded.clone()),
        expected.tensor("decoded"),
        TOLERANCE,
    );
    assert_close(
        model.decode_quantized(encoded),
        expected.tensor("decoded_not_quantized"),
        TOLERANCE,
    );
}
