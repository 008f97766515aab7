//! Pictures that the program left, and models to draw some from.

use std::{
    fs::{self, File},
    io::BufReader,
    path::Path,
};

use image::RgbImage;
use serde_json::Value;

use super::Workspace;

/// A workspace with a fixture's network of random weights as the model directory `m`.
pub(crate) fn with_model(fixture: &str) -> Workspace {
    let workspace = Workspace::empty();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/compvis");
    let model = root.join(fixture).join("model.ckpt");
    workspace.run(&format!("convert {} m", model.display()));
    workspace
}

/// Writes what `ldm.json` of the model `m` has under a key.
pub(crate) fn set_fact(workspace: &Workspace, key: &str, value: Value) {
    let path = workspace.path("m/ldm.json");
    let mut facts: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    facts[key] = value;
    fs::write(path, facts.to_string()).unwrap();
}

pub(crate) fn picture(workspace: &Workspace, name: &str) -> RgbImage {
    image::open(workspace.path(name)).unwrap().into_rgb8()
}

/// The request that a PNG file carries.
pub(crate) fn record(workspace: &Workspace, name: &str) -> Value {
    let file = BufReader::new(File::open(workspace.path(name)).unwrap());
    let reader = png::Decoder::new(file).read_info().unwrap();
    let chunk = (reader.info().utf8_text.iter())
        .find(|chunk| chunk.keyword == "ldm")
        .expect("a picture carries its request");
    serde_json::from_str(&chunk.get_text().unwrap()).unwrap()
}

/// Kernels may round otherwise for another number of images.
#[track_caller]
pub(crate) fn assert_alike(a: &RgbImage, b: &RgbImage, what: &str) {
    assert_eq!(a.dimensions(), b.dimensions(), "{what}");
    let pairs = a.as_raw().iter().zip(b.as_raw());
    let difference = pairs.map(|(a, b)| a.abs_diff(*b)).max();
    assert!(difference <= Some(1), "{what}: {difference:?}");
}
