use std::fs;
use std::path::PathBuf;

use ::safetensors::SafeTensors;
use burn::module::Param;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{GroupNorm, GroupNormConfig, Linear, LinearConfig};
use burn::tensor::{Device, Tensor, TensorData};
use burn_store::bridge;

use super::*;

#[derive(Module, Debug)]
struct Net {
    conv: Conv2d,
    norm: GroupNorm,
    proj: Linear,
}

fn net(width: usize) -> Net {
    let device = Device::flex().autodiff();
    Net {
        conv: Conv2dConfig::new([3, width], [3, 3]).init(&device),
        norm: GroupNormConfig::new(2, width).init(&device),
        proj: LinearConfig::new(width, 5).init(&device),
    }
}

const OUT: KeyMap = &[(r"^proj\.", "ff.net.2.")];
const IN: KeyMap = &[(r"^ff\.net\.2\.", "proj.")];

fn saved(dir: &Path, options: &SaveOptions) -> (Net, PathBuf) {
    let path = dir.join("net.safetensors");
    let net = net(4);
    save(&net, &path, options).unwrap();
    (net, path)
}

fn values<const D: usize>(param: &Param<Tensor<D>>) -> Vec<f32> {
    param.val().into_data().iter().collect()
}

#[test]
fn names_and_layouts_are_pytorchs() {
    let dir = tempfile::tempdir().unwrap();
    let (net, path) = saved(
        dir.path(),
        &SaveOptions {
            key_map: OUT,
            ..Default::default()
        },
    );
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut names = file.names();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "conv.bias",
            "conv.weight",
            "ff.net.2.bias",
            "ff.net.2.weight",
            "norm.bias",
            "norm.weight"
        ]
    );
    let weight = file.tensor("ff.net.2.weight").unwrap();
    assert_eq!(weight.shape(), [5, 4]);
    let transposed: Vec<f32> = net
        .proj
        .weight
        .val()
        .transpose()
        .into_data()
        .iter()
        .collect();
    let stored: Vec<f32> = weight
        .data()
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect();
    assert_eq!(stored, transposed);
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
}

#[test]
fn loading_restores_bit_for_bit_and_stays_trainable() {
    let dir = tempfile::tempdir().unwrap();
    let (before, path) = saved(
        dir.path(),
        &SaveOptions {
            key_map: OUT,
            ..Default::default()
        },
    );
    let target = net(4);
    let id = target.proj.weight.id;
    let (after, skipped) = load(
        target,
        &path,
        &LoadOptions {
            key_map: IN,
            skip: &[],
        },
    )
    .unwrap();
    assert!(skipped.is_empty());
    assert_eq!(values(&after.conv.weight), values(&before.conv.weight));
    assert_eq!(values(&after.proj.weight), values(&before.proj.weight));
    assert_eq!(after.proj.weight.id, id);
    assert!(after.proj.weight.val().is_require_grad());
}

#[test]
fn equal_weights_give_equal_files() {
    let dir = tempfile::tempdir().unwrap();
    let metadata =
        BTreeMap::from([("a", "1"), ("b", "2"), ("c", "3")].map(|(k, v)| (k.into(), v.into())));
    let options = SaveOptions {
        metadata,
        ..Default::default()
    };
    let (net, path) = saved(dir.path(), &options);
    let again = dir.path().join("again.safetensors");
    save(&net, &again, &options).unwrap();
    assert_eq!(fs::read(path).unwrap(), fs::read(again).unwrap());
}

#[test]
fn half_precision_files_are_half_as_large_and_load_as_f32() {
    let dir = tempfile::tempdir().unwrap();
    let (before, path) = saved(
        dir.path(),
        &SaveOptions {
            half: true,
            ..Default::default()
        },
    );
    let bytes = fs::read(&path).unwrap();
    assert_eq!(
        SafeTensors::deserialize(&bytes)
            .unwrap()
            .tensor("conv.weight")
            .unwrap()
            .dtype(),
        ::safetensors::Dtype::F16
    );
    let (after, _) = load(net(4), &path, &LoadOptions::default()).unwrap();
    assert_eq!(after.conv.weight.val().dtype(), DType::F32);
    for (a, b) in values(&after.conv.weight)
        .iter()
        .zip(values(&before.conv.weight))
    {
        // Below 2^-14 a half has a fixed step of 2^-24 in place of ten bits.
        assert!((a - b).abs() <= b.abs() * 1e-3 + 2f32.powi(-25), "{a} {b}");
    }
}

#[test]
fn another_shape_is_reported_in_the_files_terms() {
    let dir = tempfile::tempdir().unwrap();
    let (_, path) = saved(
        dir.path(),
        &SaveOptions {
            key_map: OUT,
            ..Default::default()
        },
    );
    let error = load(
        net(6),
        &path,
        &LoadOptions {
            key_map: IN,
            skip: &[],
        },
    )
    .unwrap_err()
    .to_string();
    assert!(error.contains("net.safetensors"), "{error}");
    assert!(
        error.contains("`ff.net.2.weight` has shape [5, 4], expected [5, 6]"),
        "{error}"
    );
    assert!(
        error.contains("`conv.weight` has shape [4, 3, 3, 3], expected [6, 3, 3, 3]"),
        "{error}"
    );
}

#[test]
fn missing_and_unknown_tensors_are_reported_unless_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let (_, path) = saved(
        dir.path(),
        &SaveOptions {
            key_map: OUT,
            ..Default::default()
        },
    );
    let WeightsError::Mismatch { differences, .. } =
        load(net(4), &path, &LoadOptions::default()).unwrap_err()
    else {
        panic!("not a mismatch")
    };
    assert_eq!(differences.missing, ["proj.bias", "proj.weight"]);
    assert_eq!(differences.unused, ["ff.net.2.bias", "ff.net.2.weight"]);

    let part = Part { conv: net(4).conv };
    let skip = &[r"^norm\.", r"^ff\."];
    let (_, skipped) = load(part.clone(), &path, &LoadOptions { key_map: &[], skip }).unwrap();
    assert_eq!(skipped.len(), 4);
    assert!(
        load(
            part,
            &path,
            &LoadOptions {
                key_map: &[],
                skip: &skip[..1]
            }
        )
        .is_err()
    );
}

#[derive(Module, Debug)]
struct Part {
    conv: Conv2d,
}

#[test]
fn files_that_are_no_weights_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let (_, good) = saved(dir.path(), &SaveOptions::default());
    let bytes = fs::read(good).unwrap();
    let mut lying = bytes.clone();
    lying[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let cases: [(&str, &[u8]); 6] = [
        ("empty", b""),
        ("text", b"this is not a safetensors file"),
        ("truncated", &bytes[..bytes.len() - 7]),
        ("cut in the header", &bytes[..40]),
        ("with an endless header", &lying),
        ("too long", &[bytes.as_slice(), b"more"].concat()),
    ];
    for (name, content) in cases {
        let path = dir.path().join(name);
        fs::write(&path, content).unwrap();
        let error = load(net(4), &path, &LoadOptions::default()).unwrap_err();
        assert!(
            matches!(error, WeightsError::Invalid { .. }),
            "{name}: {error}"
        );
        assert!(error.to_string().contains(name), "{error}");
    }
    let absent = load(net(4), &dir.path().join("absent"), &LoadOptions::default()).unwrap_err();
    assert!(matches!(absent, WeightsError::Unreadable { .. }));
}

#[test]
fn an_integer_tensor_in_place_of_floats_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("int.safetensors");
    let data = |shape: [usize; 1]| TensorData::zeros::<i64, _>(shape);
    let conv = bridge::from_data(
        TensorData::zeros::<f32, _>([4, 3, 3, 3]),
        "conv.weight".into(),
        None,
    );
    write_tensors(
        &path,
        vec![conv, bridge::from_data(data([4]), "conv.bias".into(), None)],
        &HeaderText::new(),
    )
    .unwrap();
    let error = load(Part { conv: net(4).conv }, &path, &LoadOptions::default()).unwrap_err();
    assert!(error.to_string().contains("conv.bias"), "{error}");
}
