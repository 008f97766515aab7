//! Models that diffusers and CompVis' code wrote, through the command line: sampled, encoded and decoded to the numbers of their own code,
//! converted there and back.

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
};

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use support::{Workspace, succeeded};

/// Largest error of final latents, in units of the reference's largest absolute value.
const LATENTS: f32 = 1e-4;
/// The same of images and of the first stage's latents.
const FIRST_STAGE: f32 = 2e-4;

#[derive(Clone)]
struct Array {
    shape: Vec<usize>,
    values: Vec<f32>,
}

impl Array {
    /// Item `index` of a batch, as a batch of one.
    fn item(&self, index: usize) -> Self {
        let size: usize = self.shape[1..].iter().product();
        let mut shape = self.shape.clone();
        shape[0] = 1;
        Self {
            shape,
            values: self.values[index * size..(index + 1) * size].to_vec(),
        }
    }

    /// The first or second half of the channels of `[N, 2 C, H, W]`.
    fn half_of_channels(&self, half: usize) -> Self {
        let mut shape = self.shape.clone();
        shape[1] /= 2;
        let size: usize = shape[1..].iter().product();
        let values = self.values.chunks(2 * size);
        Self {
            values: values
                .flat_map(|item| item[half * size..(half + 1) * size].to_vec())
                .collect(),
            shape,
        }
    }
}

/// Reads every tensor that is a float or an integer.
struct File(Vec<u8>);

impl File {
    fn open(path: impl AsRef<Path>) -> Self {
        Self(fs::read(path).unwrap())
    }

    fn get(&self, name: &str) -> Array {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = file.tensor(name).unwrap();
        let data = tensor.data();
        let values = match tensor.dtype() {
            Dtype::F32 => (data.chunks_exact(4))
                .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
                .collect(),
            Dtype::I64 => (data.chunks_exact(8))
                .map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f32)
                .collect(),
            other => panic!("{name} is {other:?}"),
        };
        Array {
            shape: tensor.shape().to_vec(),
            values,
        }
    }

    fn has(&self, name: &str) -> bool {
        SafeTensors::deserialize(&self.0)
            .unwrap()
            .tensor(name)
            .is_ok()
    }
}

fn save(path: &Path, name: &str, array: &Array) {
    let bytes: Vec<u8> = array.values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F32, array.shape.clone(), &bytes).unwrap();
    fs::write(path, safetensors::serialize([(name, view)], None).unwrap()).unwrap();
}

#[track_caller]
fn assert_close(what: &str, found: &Array, expected: &Array, tolerance: f32) {
    assert_eq!(found.shape, expected.shape, "{what}");
    let largest = expected.values.iter().fold(0f32, |m, v| m.max(v.abs()));
    let error = (found.values.iter().zip(&expected.values))
        .fold(0f32, |m, (a, b)| m.max((a - b).abs()))
        / largest;
    println!("{what}: {error:.1e}");
    assert!(error <= tolerance, "{what}: {error:e} > {tolerance:e}");
}

fn fixtures(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/fixtures")
        .join(path)
}

/// Draws from given noise and returns the final latents.
fn sample(workspace: &Workspace, model: &Path, start: &Array, arguments: &[&str]) -> Array {
    let [from, to] = ["start.safetensors", "end.safetensors"].map(|name| workspace.path(name));
    save(&from, "latents", start);
    let mut all = vec!["sample"];
    all.extend_from_slice(arguments);
    all.extend(["--model", model.to_str().unwrap(), "--out", "sample.png"]);
    all.extend([
        "--init-latents",
        "start.safetensors",
        "--save-latents",
        "end.safetensors",
    ]);
    succeeded(workspace.command_of(&all).output().unwrap());
    File::open(to).get("latents")
}

/// A CompVis checkpoint and what conditions each of its two items.
struct Case {
    name: &'static str,
    conditions: [Vec<String>; 2],
}

fn words(arguments: &[&str]) -> Vec<String> {
    arguments
        .iter()
        .map(|&argument| argument.to_owned())
        .collect()
}

fn cases(workspace: &Workspace) -> Vec<Case> {
    let prompts: serde_json::Value =
        serde_json::from_slice(&fs::read(fixtures("compvis/text-kl-f8/prompts.json")).unwrap())
            .unwrap();
    let class_ids = expected("class-vq-f4").get("cond.class_ids");
    let label_maps = expected("semantic-vq-f4").get("cond.label_map");
    vec![
        Case {
            name: "uncond-vq-f4",
            conditions: [vec![], vec![]],
        },
        Case {
            name: "uncond-kl",
            conditions: [vec![], vec![]],
        },
        Case {
            name: "class-vq-f4",
            conditions: [0, 1].map(|item| {
                let class = class_ids.values[item].to_string();
                words(&["--class", &class, "--guidance", "3"])
            }),
        },
        Case {
            name: "semantic-vq-f4",
            conditions: [0, 1].map(|item| {
                let map = label_maps.item(item);
                let labels = map.values.iter().map(|&label| label as u8).collect();
                let (height, width) = (map.shape[1] as u32, map.shape[2] as u32);
                let name = format!("labels-{item}.png");
                image::GrayImage::from_raw(width, height, labels)
                    .unwrap()
                    .save(workspace.path(&name))
                    .unwrap();
                words(&["--semantic", &name])
            }),
        },
        Case {
            name: "text-kl-f8",
            conditions: [0, 1].map(|item| {
                words(&[
                    prompts["prompts"][item].as_str().unwrap(),
                    "--guidance",
                    "5",
                ])
            }),
        },
    ]
}

fn expected(case: &str) -> File {
    File::open(fixtures(&format!("compvis/{case}/expected.safetensors")))
}

#[test]
fn compvis_checkpoints_sample_to_the_originals_latents() {
    let workspace = Workspace::empty();
    for case in cases(&workspace) {
        let expected = expected(case.name);
        let model = fixtures(&format!("compvis/{}/model.ckpt", case.name));
        for (sampler, name) in [("ddim", "ddim20.final"), ("plms", "plms20.final")] {
            for (item, condition) in case.conditions.iter().enumerate() {
                let mut arguments: Vec<&str> = condition.iter().map(String::as_str).collect();
                arguments.extend(["--sampler", sampler, "--steps", "20"]);
                let start = expected.get("x_T").item(item);
                let latents = sample(&workspace, &model, &start, &arguments);
                let what = format!("{} {sampler} item {item}", case.name);
                assert_close(&what, &latents, &expected.get(name).item(item), LATENTS);
            }
        }
    }
}

#[test]
fn compvis_first_stages_encode_and_decode_as_the_original() {
    let workspace = Workspace::empty();
    for case in cases(&workspace) {
        let expected = expected(case.name);
        let model = fixtures(&format!("compvis/{}/model.ckpt", case.name));
        let model = model.to_str().unwrap();
        save(
            &workspace.path("in.safetensors"),
            "images",
            &expected.get("first_stage.image"),
        );
        succeeded(
            workspace
                .command_of(&[
                    "encode",
                    "in.safetensors",
                    "--model",
                    model,
                    "--out",
                    "z.safetensors",
                ])
                .output()
                .unwrap(),
        );
        let encoded = File::open(workspace.path("z.safetensors"));
        if expected.has("first_stage.moments") {
            let moments = expected.get("first_stage.moments");
            for (half, name) in ["mean", "logvar"].into_iter().enumerate() {
                let what = format!("{} {name}", case.name);
                let expected = moments.half_of_channels(half);
                assert_close(&what, &encoded.get(name), &expected, FIRST_STAGE);
            }
        } else {
            let what = format!("{} latents", case.name);
            let expected = expected.get("first_stage.latent");
            assert_close(&what, &encoded.get("latents"), &expected, FIRST_STAGE);
        }

        save(
            &workspace.path("end.safetensors"),
            "latents",
            &expected.get("ddim20.final"),
        );
        succeeded(
            workspace
                .command_of(&[
                    "decode",
                    "end.safetensors",
                    "--model",
                    model,
                    "--out",
                    "decoded",
                ])
                .output()
                .unwrap(),
        );
        let images = File::open(workspace.path("decoded/images.safetensors")).get("images");
        assert_close(
            &format!("{} decoded", case.name),
            &images,
            &expected.get("ddim20.decoded"),
            FIRST_STAGE,
        );
        assert!(workspace.path("decoded/0001.png").is_file());
    }
}

#[test]
fn conversion_there_and_back_changes_no_bit_of_a_sample() {
    let workspace = Workspace::empty();
    for case in cases(&workspace) {
        let expected = expected(case.name);
        let checkpoint = fixtures(&format!("compvis/{}/model.ckpt", case.name));
        let names =
            ["directory", "there.ckpt", "back.safetensors"].map(|n| format!("{}-{n}", case.name));
        let mut source = checkpoint.to_str().unwrap().to_owned();
        let mut arguments: Vec<&str> = case.conditions[0].iter().map(String::as_str).collect();
        arguments.extend(["--sampler", "ddim", "--steps", "3"]);
        let start = expected.get("x_T").item(0);
        let before = sample(&workspace, &checkpoint, &start, &arguments);
        for name in names {
            workspace.run(&format!("convert {source} {name}"));
            let after = sample(&workspace, &workspace.path(&name), &start, &arguments);
            assert_eq!(after.values, before.values, "{name}");
            source = name;
        }
    }
}

#[test]
fn diffusers_directories_sample_to_its_latents() {
    let workspace = Workspace::empty();
    for (name, arguments) in [
        (
            "ldm-text2im",
            vec![
                "A painting of a squirrel eating a burger",
                "--guidance",
                "5",
            ],
        ),
        ("ldm-uncond", vec![]),
    ] {
        let expected = File::open(fixtures(&format!("diffusers/{name}/expected.safetensors")));
        let model = fixtures(&format!("diffusers/{name}"));
        let mut arguments = arguments;
        arguments.extend(["--steps", "20"]);
        let start = expected.get("in.sample.latents");
        let latents = sample(&workspace, &model, &start, &arguments);
        assert_close(name, &latents, &expected.get("out.sample.final"), LATENTS);
    }
}
