//! Against diffusers 0.36 (`tests/fixtures/diffusers`).

use burn::tensor::Device;

use super::{Expected, assert_close, fixture, load};
use crate::{AutoencoderKl, AutoencoderKlConfig, weights};

const TOLERANCE: f32 = 3e-5;

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
