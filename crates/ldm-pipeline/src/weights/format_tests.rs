//! Files of every format against what PyTorch reads in them, and CompVis' layout both ways.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use burn::tensor::TensorData;
use burn_store::bridge;
use ldm_nn::weights::{KeyPair, Layout};

use super::*;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/fixtures/torch")
        .join(name)
}

fn opened(name: &str) -> Tensors {
    open(&fixture(name)).unwrap()
}

/// Whether `tensors` are those that PyTorch sees in `file`: names, types, shapes and bytes.
fn assert_as_expected(file: &str, tensors: &Tensors) {
    let expected = opened("expected.safetensors").below(&format!("{file}:"));
    assert!(!expected.is_empty(), "{file}");
    assert_eq!(
        tensors.names().collect::<Vec<_>>(),
        expected.names().collect::<Vec<_>>(),
        "{file}"
    );
    for name in expected.names() {
        assert_same(
            &tensors.data(name).unwrap(),
            &expected.data(name).unwrap(),
            name,
        );
    }
}

fn assert_same(found: &TensorData, expected: &TensorData, name: &str) {
    assert_eq!(found.dtype(), expected.dtype(), "{name}");
    assert_eq!(found.shape(), expected.shape(), "{name}");
    assert_eq!(found.as_bytes(), expected.as_bytes(), "{name}");
}

#[test]
fn tensors_are_those_that_pytorch_reads() {
    for file in [
        "dtypes.pt",
        "strides.pt",
        "legacy.pt",
        "protocol4.pt",
        "protocol5.pt",
        "module.bin",
        "nested.pt",
        "python2.pt",
        "objects.ckpt",
        "unread.pt",
        "evil.pt",
        "lightning_style.ckpt",
        "compvis.ckpt",
        "model.safetensors.index.json",
    ] {
        assert_as_expected(file, &opened(file));
    }
}

#[test]
fn plain_values_beside_the_tensors_are_kept() {
    let value = |file, key: &str| opened(file).metadata().get(key).cloned();
    assert_eq!(value("compvis.ckpt", "global_step").unwrap(), "55537");
    assert_eq!(value("objects.ckpt", "global_step").unwrap(), "8589934592");
    assert_eq!(value("objects.ckpt", "negative").unwrap(), "-5");
    assert_eq!(value("nested.pt", "lr").unwrap(), "0.5");
    assert_eq!(value("nested.pt", "name").unwrap(), "net");
    assert_eq!(value("objects.ckpt", "array"), None);
}

#[test]
fn what_a_pickle_would_have_made_is_named_where_a_tensor_is_missing() {
    assert!(!Path::new("ldm-pickle-was-run").exists());
    let pairs = |name: &str| [KeyPair::same(name, name)];
    for (file, name, maker) in [
        ("evil.pt", "evil", "posix.system"),
        ("unread.pt", "sparse", "torch._utils._rebuild_sparse_tensor"),
        ("unread.pt", "complex", "of a type that is not read"),
        ("unread.pt", "array", "numpy"),
    ] {
        let error = from_compvis(&opened(file), "", &pairs(name)).unwrap_err();
        let message = error.to_string();
        assert!(
            message.contains(file) && message.contains(maker),
            "{message}"
        );
    }
}

#[test]
fn files_without_a_dictionary_of_tensors_say_what_to_do() {
    for file in ["whole_module.pt", "bare_tensor.pt"] {
        let error = open(&fixture(file)).unwrap_err();
        assert!(matches!(error, WeightsError::Unsupported { .. }), "{error}");
        assert!(error.to_string().contains(file), "{error}");
        assert!(error.help().unwrap().contains("state_dict()"), "{error}");
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weights.bin");
    let mut tar = vec![0; 512];
    tar[257..262].copy_from_slice(b"ustar");
    let cases: [(&[u8], &str); 5] = [
        (&tar, "torch 1.6"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "git lfs pull",
        ),
        (b"\x80\x04]\x94.", "torch.save"),
        (b"PK\x03\x04 and nothing more", "download"),
        (b"<!doctype html>", "download"),
    ];
    for (content, help) in cases {
        fs::write(&path, content).unwrap();
        let error = open(&path).unwrap_err();
        assert!(error.help().unwrap().contains(help), "{error}");
    }
    assert!(matches!(
        open(dir.path()).unwrap_err(),
        WeightsError::Unreadable { .. }
    ));
}

#[test]
fn truncated_checkpoints_are_named() {
    let dir = tempfile::tempdir().unwrap();
    for file in ["dtypes.pt", "legacy.pt", "expected.safetensors"] {
        let bytes = fs::read(fixture(file)).unwrap();
        for len in [1, 20, bytes.len() / 2, bytes.len() - 1] {
            let path = dir.path().join(file);
            fs::write(&path, &bytes[..len]).unwrap();
            let error = open(&path).unwrap_err();
            assert!(error.to_string().contains(file), "{len}: {error}");
        }
    }
}

#[test]
fn preferred_files_come_first_and_all_names_are_reported() {
    let dir = tempfile::tempdir().unwrap();
    let WeightsError::NotFound { looked_for, .. } = find(dir.path(), "model").unwrap_err() else {
        panic!("not missing");
    };
    assert!(looked_for.contains(&"pytorch_model.bin".to_owned()));
    for name in [
        "pytorch_model.bin.index.json",
        "pytorch_model.fp16.bin",
        "pytorch_model.bin",
        "model.safetensors.index.json",
        "model.fp16.safetensors",
        "model.safetensors",
    ] {
        assert!(looked_for.contains(&name.to_owned()), "{name}");
        fs::write(dir.path().join(name), "").unwrap();
        assert_eq!(find(dir.path(), "model").unwrap(), dir.path().join(name));
    }
    let other = find(dir.path(), "diffusion_pytorch_model").unwrap_err();
    assert!(
        other
            .to_string()
            .contains("diffusion_pytorch_model.fp16.bin"),
        "{other}"
    );
}

#[test]
fn indices_that_lead_elsewhere_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors.index.json");
    fs::copy(fixture("module.bin"), dir.path().join("one.bin")).unwrap();
    fs::copy(fixture("module.bin"), dir.path().join("two.bin")).unwrap();
    for (index, problem) in [
        (
            r#"{"weight_map": {"a": "../one.bin"}}"#,
            "no file beside it",
        ),
        (
            r#"{"weight_map": {"a": "model.safetensors.index.json"}}"#,
            "no file beside it",
        ),
        (
            r#"{"weight_map": {"a": "one.bin", "b": "two.bin"}}"#,
            "several",
        ),
        (r#"{"weight_map": {"a": "three.bin"}}"#, "three.bin"),
        (r#"{"weight_map": ["a"]}"#, "no index"),
        ("{}", "weight_map"),
    ] {
        fs::write(&path, index).unwrap();
        let message = open(&path).unwrap_err().to_string();
        assert!(message.contains(problem), "{message}");
    }
}

const QKV: &str = "model.diffusion_model.input_blocks.1.1.qkv.";

fn qkv_pairs(heads: usize) -> Vec<KeyPair> {
    let names = ["to_q", "to_k", "to_v"].into_iter().enumerate();
    let pairs = names.flat_map(|(part, to)| {
        ["weight", "bias"].map(|kind| KeyPair {
            diffusers: format!("{to}.{kind}"),
            compvis: kind.to_owned(),
            layout: Layout::Qkv { part, heads },
        })
    });
    pairs.collect()
}

#[test]
fn fused_projections_are_taken_apart_and_joined_again() {
    let raw = opened("compvis.ckpt");
    let ema = with_ema(&raw).unwrap().unwrap();
    let expected = opened("expected.safetensors");
    for (source, kind) in [(&raw, "raw"), (&ema, "ema")] {
        for heads in [8, 1] {
            let pairs = qkv_pairs(heads);
            let apart = from_compvis(source, QKV, &pairs).unwrap();
            let expected = expected.below(&format!("{kind}.heads{heads}."));
            assert_eq!(apart.shapes(), expected.shapes());
            for name in expected.names() {
                assert_same(
                    &apart.data(name).unwrap(),
                    &expected.data(name).unwrap(),
                    name,
                );
            }
            let joined = to_compvis(&apart, QKV, &pairs).unwrap();
            assert_eq!(joined.len(), 2);
            for name in joined.names() {
                assert_same(
                    &joined.data(name).unwrap(),
                    &source.data(name).unwrap(),
                    name,
                );
            }
        }
    }
}

#[test]
fn pointwise_convolutions_become_matrices_and_back() {
    let checkpoint = opened("compvis.ckpt");
    let prefix = "first_stage_model.encoder.mid.attn_1.q.";
    let pairs = [KeyPair {
        diffusers: "to_q.weight".into(),
        compvis: "weight".into(),
        layout: Layout::Pointwise { axes: 2 },
    }];
    let matrix = from_compvis(&checkpoint, prefix, &pairs).unwrap();
    assert_eq!(matrix.shape("to_q.weight").unwrap(), [32, 32]);
    let key = format!("{prefix}weight");
    let back = to_compvis(&matrix, prefix, &pairs).unwrap();
    assert_same(
        &back.data(&key).unwrap(),
        &checkpoint.data(&key).unwrap(),
        &key,
    );
    let rest = unclaimed(&checkpoint, &[(prefix, &pairs)]);
    assert_eq!(rest.len(), checkpoint.len() - 1);
    assert!(!rest.contains(&key));
}

#[test]
fn averages_take_the_place_of_raw_weights() {
    let raw = opened("compvis.ckpt");
    let ema = with_ema(&raw).unwrap().unwrap();
    let name = "model.diffusion_model.time_embed.0.bias";
    let average = raw
        .data("model_ema.diffusion_modeltime_embed0bias")
        .unwrap();
    assert_same(&ema.data(name).unwrap(), &average, name);
    assert_ne!(raw.data(name).unwrap(), average);
    let left: Vec<&str> = ema
        .names()
        .filter(|name| name.starts_with("model_ema."))
        .collect();
    assert_eq!(left, ["model_ema.decay", "model_ema.num_updates"]);
    assert_eq!(ema.len(), raw.len() - 5);
    assert!(
        with_ema(&raw.below("first_stage_model."))
            .unwrap()
            .is_none()
    );
}

#[test]
fn impossible_tensors_are_named_by_their_keys() {
    let checkpoint = opened("compvis.ckpt");
    let pairs = [
        KeyPair {
            diffusers: "a".into(),
            compvis: "betas".into(),
            layout: Layout::Pointwise { axes: 1 },
        },
        KeyPair {
            diffusers: "b".into(),
            compvis: "betas".into(),
            layout: Layout::Qkv { part: 0, heads: 1 },
        },
        KeyPair::same("c", "absent"),
    ];
    let message = from_compvis(&checkpoint, "", &pairs)
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("`betas` has shape [1000], expected two axes"),
        "{message}"
    );
    assert!(message.contains("queries, keys and values"), "{message}");
    assert!(message.contains("missing in the file: absent"), "{message}");
}

#[test]
fn checkpoints_come_back_as_they_were_written() {
    let dir = tempfile::tempdir().unwrap();
    let all = opened("dtypes.pt");
    // PyTorch has no storage class for unsigned words.
    let mut tensors = Tensors::new(Path::new("test"));
    for name in all.names().filter(|name| *name != "uint16") {
        tensors.insert(name, all.data(name).unwrap());
    }
    let values = [
        ("global_step", "7"),
        ("lr", "0.5"),
        ("name", "net"),
        ("large", "8589934592"),
    ];
    let values: BTreeMap<String, String> =
        values.map(|(key, value)| (key.into(), value.into())).into();
    for name in ["model.ckpt", "model.safetensors"] {
        let path = dir.path().join(name);
        write(&path, &tensors, &values).unwrap();
        let back = open(&path).unwrap();
        assert_eq!(back.shapes(), tensors.shapes());
        for name in tensors.names() {
            assert_same(
                &back.data(name).unwrap(),
                &tensors.data(name).unwrap(),
                name,
            );
        }
        for (key, value) in &values {
            assert_eq!(back.metadata()[key], *value);
        }
    }
    let error = write(&dir.path().join("all.ckpt"), &all, &values).unwrap_err();
    assert!(error.to_string().contains("`uint16`"), "{error}");
}

#[test]
fn large_matrices_are_transposed_whatever_their_sides() {
    use burn_store::{ModuleAdapter, ModuleContext};
    let containers = ["Struct:Linear".to_owned()];
    for (rows, columns) in [(1, 1), (64, 64), (65, 63), (200, 7), (1, 300), (0, 5)] {
        let values: Vec<f32> = (0..rows * columns).map(|i| i as f32).collect();
        let data = TensorData::new(values, [rows, columns]);
        let tensor = bridge::from_data(data, "proj.weight".into(), None);
        let adapted = FromPyTorch.adapt(tensor, ModuleContext::new(&containers));
        let data = bridge::to_data(&adapted).unwrap();
        assert_eq!(data.shape().to_vec(), [columns, rows]);
        let found = data.as_slice::<f32>().unwrap();
        for (i, value) in found.iter().enumerate() {
            let (column, row) = (i / rows, i % rows);
            assert_eq!(*value, (row * columns + column) as f32);
        }
    }
}
