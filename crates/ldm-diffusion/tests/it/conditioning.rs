//! The conditioners' shapes, and what their configurations refuse.

use crate::common::values;
use burn::prelude::*;
use ldm_diffusion::{ClassEmbedderConfig, SpatialRescalerConfig};

fn rescaler(json: &str) -> SpatialRescalerConfig {
    serde_json::from_str(json).unwrap()
}

#[test]
fn a_picture_is_averaged_and_odd_edges_are_dropped() {
    let device = Device::flex();
    let config = rescaler(r#"{"n_stages": 2, "in_channels": 1}"#);
    assert_eq!(config.output_channels(), 1);
    let x = Tensor::<1, Int>::arange(0..30, &device).float();
    // 5x6 becomes 2x3, and that 1x1: the mean of rows and columns 0 to 3.
    let y = config.init(&device).forward(x.reshape([1, 1, 5, 6]));
    assert_eq!(y.dims(), [1, 1, 1, 1]);
    assert_eq!(values(y), [10.5]);
}

#[test]
fn a_label_becomes_a_channel() {
    let device = Device::flex();
    let config = rescaler(r#"{"n_stages": 0, "in_channels": 3}"#);
    let labels = Tensor::<1, Int>::from_ints([0, 2, 7, 1], &device).reshape([2, 1, 2]);
    let y = config.init(&device).forward_labels(labels);
    assert_eq!(y.dims(), [2, 3, 1, 2]);
    let first = [1.0, 0.0, 0.0, 0.0, 0.0, 1.0];
    // A label without a channel is in none.
    let second = [0.0, 0.0, 0.0, 1.0, 0.0, 0.0];
    assert_eq!(values(y), [first, second].concat());
}

#[test]
fn keys_are_those_of_the_parameters() {
    for (json, expected) in [
        (r#"{"in_channels": 2}"#, vec![]),
        (r#"{"out_channels": 2}"#, vec!["channel_mapper.weight"]),
        (
            r#"{"out_channels": 2, "bias": true}"#,
            vec!["channel_mapper.weight", "channel_mapper.bias"],
        ),
    ] {
        let config = rescaler(json);
        let keys: Vec<String> = (config.compvis_keys().into_iter())
            .map(|pair| pair.diffusers)
            .collect();
        assert_eq!(keys, expected, "{json}");
        let parameters = config.init(&Device::flex()).num_params();
        let expected = match keys.len() {
            0 => 0,
            1 => 6,
            _ => 8,
        };
        assert_eq!(parameters, expected, "{json}");
    }
}

#[test]
fn mistakes_name_their_field() {
    let class = r#"{"embed_dim": 8, "n_class": 5}"#;
    let error = serde_json::from_str::<ClassEmbedderConfig>(class).unwrap_err();
    assert!(error.to_string().contains("`n_class`"), "{error}");
    let class: ClassEmbedderConfig =
        serde_json::from_str(r#"{"embed_dim": 8, "n_classes": 0}"#).unwrap();
    let error = class.validate().unwrap_err().to_string();
    assert!(error.contains("`n_classes` is 0"), "{error}");

    let method = serde_json::from_str::<SpatialRescalerConfig>(r#"{"method": "area"}"#);
    let error = method.unwrap_err().to_string();
    assert!(error.contains("`method`"), "{error}");
    let error = rescaler(r#"{"out_channels": 0}"#).validate().unwrap_err();
    assert!(error.to_string().contains("`out_channels` is 0"), "{error}");
}
