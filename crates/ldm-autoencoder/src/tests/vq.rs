use burn::prelude::*;

use super::{assert_close, uniform, values};
use crate::{ConfigError, VectorQuantizer, VqModelConfig};

fn tiny() -> VqModelConfig {
    VqModelConfig {
        norm_num_groups: 4,
        ..VqModelConfig::new(vec![4, 8], 3, 16, 1)
    }
}

fn with_codes<const K: usize>(codes: [[f32; 2]; K]) -> VectorQuantizer {
    let device = Device::flex();
    let mut quantizer = VectorQuantizer::new(K, 2, &device);
    let codes = Tensor::<2>::from_floats(codes, &device);
    quantizer.embedding.weight = quantizer.embedding.weight.map(|_| codes);
    quantizer
}

fn indices(quantizer: &VectorQuantizer, latents: Tensor<4>) -> Vec<i64> {
    let quantized = quantizer.forward(latents);
    quantized.indices.into_data().iter().collect()
}

#[test]
fn shapes_follow_the_configuration() {
    let wide = VqModelConfig {
        latent_channels: 5,
        vq_embed_dim: Some(2),
        in_channels: 1,
        out_channels: 2,
        mid_block_add_attention: false,
        ..tiny()
    };
    for config in [tiny(), wide] {
        let model = config.init(&Device::flex());
        let images = uniform([2, config.in_channels, 8, 12], 1.0, 1);
        let latents = model.encode(images);
        assert_eq!(latents.dims(), [2, config.embed_dim(), 4, 6]);
        let quantized = model.quantize(latents.clone());
        assert_eq!(quantized.latents.dims(), latents.dims());
        assert_eq!(quantized.indices.dims(), [2, 4, 6]);
        let images = model.decode(latents);
        assert_eq!(images.dims(), [2, config.out_channels, 8, 12]);
        assert_close(model.decode_quantized(quantized.latents), images, 0.0);
        assert_eq!((config.factor(), model.factor()), (2, 2));
    }
}

#[test]
fn every_pixel_gets_the_nearest_code() {
    let codes = [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [-3.0, 2.0]];
    let quantizer = with_codes(codes);
    let latents = uniform([2, 2, 5, 7], 3.0, 2);
    let quantized = quantizer.forward(latents.clone());
    let nearest: Vec<usize> = quantized
        .indices
        .into_data()
        .iter::<i64>()
        .map(|i| i as usize)
        .collect();
    let (latents, found) = (values(latents), values(quantized.latents));
    for (pixel, &code) in nearest.iter().enumerate() {
        let (n, yx) = (pixel / 35, pixel % 35);
        let at = |values: &[f32], c: usize| values[(2 * n + c) * 35 + yx];
        let distance = |code: [f32; 2]| {
            (at(&latents, 0) - code[0]).powi(2) + (at(&latents, 1) - code[1]).powi(2)
        };
        assert!(
            codes
                .iter()
                .all(|other| distance(codes[code]) <= distance(*other))
        );
        assert_eq!([at(&found, 0), at(&found, 1)], codes[code]);
    }
}

#[test]
fn the_first_of_equally_near_codes_wins() {
    let quantizer = with_codes([[9.0, 9.0], [1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]]);
    let latents = Tensor::<4>::from_floats([[[[0.0, 2.0]], [[5.0, 0.0]]]], &Device::flex());
    assert_eq!(indices(&quantizer, latents), [1, 1]);
    // Enough codes for vector instructions.
    let quantizer = with_codes([[0.5, 0.5]; 1000]);
    assert_eq!(indices(&quantizer, uniform([1, 2, 1, 3], 1.0, 3)), [0; 3]);
}

/// Codes a thousandth apart at a distance of a thousand from the origin.
#[test]
fn close_codes_far_away_are_told_apart() {
    let codes: [[f32; 2]; 8] = std::array::from_fn(|i| [1000.0, 1000.0 + 0.001 * i as f32]);
    let latents = Tensor::<1>::from_floats(codes.as_flattened(), &Device::flex());
    let latents = latents.reshape([1, 8, 1, 2]).permute([0, 3, 1, 2]);
    assert_eq!(
        indices(&with_codes(codes), latents),
        [0, 1, 2, 3, 4, 5, 6, 7]
    );
}

/// More distances than are kept in memory at once.
#[test]
fn chunks_make_no_difference() {
    const WIDTH: usize = 50;
    const HEIGHT: usize = 40;
    let codes: [[f32; 2]; WIDTH * HEIGHT] =
        std::array::from_fn(|i| [(i % WIDTH) as f32, (i / WIDTH) as f32]);
    let coordinate = |c: usize, pixel: usize| (7 * pixel + 31 * c) % [WIDTH, HEIGHT][c];
    let latents: Vec<f32> = (0..2 * 300)
        .map(|i| coordinate(i / 300, i % 300) as f32 + 0.4)
        .collect();
    let latents = Tensor::<1>::from_floats(latents.as_slice(), &Device::flex());
    let expected: Vec<i64> = (0..300)
        .map(|pixel| (coordinate(0, pixel) + WIDTH * coordinate(1, pixel)) as i64)
        .collect();
    let found = indices(&with_codes(codes), latents.reshape([1, 2, 15, 20]));
    assert_eq!(found, expected);
}

#[test]
fn config_json_is_diffusers() {
    let config = VqModelConfig {
        vq_embed_dim: Some(2),
        ..VqModelConfig::vq_f8()
    };
    let json = serde_json::to_value(&config).unwrap();
    assert_eq!(json["_class_name"], "VQModel");
    assert_eq!(json["norm_type"], "group");
    assert_eq!(json["down_block_types"][3], "AttnDownEncoderBlock2D");
    assert_eq!(json["up_block_types"][0], "AttnUpDecoderBlock2D");
    assert_eq!(
        serde_json::from_value::<VqModelConfig>(json).unwrap(),
        config
    );
    let defaults: VqModelConfig =
        serde_json::from_str(r#"{"_diffusers_version": "0.36.0"}"#).unwrap();
    assert_eq!(defaults, VqModelConfig::default());
    assert_eq!(defaults.scaling_factor, 0.18215);

    let refused = [
        (r#"{"_class_name": "AutoencoderKL"}"#, "expected `VQModel`"),
        (r#"{"norm_type": "spatial"}"#, "expected `group`"),
    ];
    for (json, message) in refused {
        let error = serde_json::from_str::<VqModelConfig>(json).unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
    }
}

#[test]
fn wrong_configurations_are_named() {
    let cases = [
        (
            VqModelConfig {
                num_vq_embeddings: 0,
                ..tiny()
            },
            ConfigError::Zero {
                field: "num_vq_embeddings",
            },
        ),
        (
            VqModelConfig {
                vq_embed_dim: Some(0),
                ..tiny()
            },
            ConfigError::Zero {
                field: "vq_embed_dim",
            },
        ),
        (
            VqModelConfig {
                lookup_from_codebook: true,
                ..tiny()
            },
            ConfigError::LookupFromCodebook,
        ),
        (
            VqModelConfig {
                norm_num_groups: 3,
                ..tiny()
            },
            ConfigError::Groups {
                level: 0,
                channels: 4,
                groups: 3,
            },
        ),
        (
            VqModelConfig {
                norm_num_groups: 4,
                ..VqModelConfig::new(vec![4; 18], 3, 16, 0)
            },
            ConfigError::TooManyLevels(18),
        ),
    ];
    for (config, expected) in cases {
        assert_eq!(config.validate().unwrap_err(), expected);
    }
    assert_eq!(tiny().validate(), Ok(()));
}
