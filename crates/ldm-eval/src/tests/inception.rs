use burn::{
    module::Module,
    tensor::{DType, Device},
};
use burn_store::{
    FloatCastAdapter, KeyRemapper, ModuleAdapter, ModuleSnapshot, PyTorchToBurnAdapter,
    SafetensorsStore,
};

use super::{assert_all_near, expected, fixture, floats, pictures};
use crate::{
    Collector, Convention, Extractor,
    inception::{InceptionV3, InceptionV3Config, KEY_MAP},
    resize::network_input,
};

/// The reference's network with a sixteenth of the widths.
pub(super) fn narrow(device: &Device) -> InceptionV3 {
    let mut network = InceptionV3Config { width_divisor: 16 }.init(device);
    let key_map = KeyRemapper::from_pattern_iter(KEY_MAP.iter().copied()).unwrap();
    let adapter = PyTorchToBurnAdapter.chain(FloatCastAdapter::to(DType::F32));
    let mut store = SafetensorsStore::from_file(fixture("inception.safetensors"))
        .with_from_adapter(adapter)
        .remap(key_map);
    let result = network.load_from(&mut store).unwrap();
    assert!(
        result.missing.is_empty() && result.unused.is_empty() && result.errors.is_empty(),
        "{result:?}"
    );
    network
}

#[test]
fn pictures_become_input_as_in_either_program() {
    let image = pictures("small");
    let device = Device::flex();
    for (name, convention) in [
        ("small.torch_fidelity", Convention::TorchFidelity),
        ("small.pytorch_fid", Convention::PytorchFid),
    ] {
        let input = network_input(&image, 37, convention, &device);
        let found: Vec<f32> = input.into_data().iter::<f32>().collect();
        assert_all_near(&found, &floats(name), 2e-6);
    }
}

#[test]
fn features_and_logits_are_torch_fidelitys() {
    let device = Device::flex();
    let extractor = Extractor::Inception {
        network: Box::new(narrow(&device)),
        convention: Convention::TorchFidelity,
        weights: "random".into(),
    };
    let mut collector = Collector::new(&extractor, &device);
    let images = pictures("images");
    collector.push(&images[..2], |i| i.to_string()).unwrap();
    collector.push(&images[2..], |i| i.to_string()).unwrap();
    assert_eq!(collector.count(), 3);
    let found = collector.finish("pictures").unwrap();
    assert_eq!(found.features.dim(), 128);
    // No further from the exact numbers than twice the reference's own rounding.
    let rounding = |name: &str| 2.0 * expected(&format!("{name}_rounding")) as f32;
    let tolerance = rounding("pool3");
    assert_all_near(found.features.values(), &floats("pool3"), tolerance);
    let logits = found.logits.unwrap();
    assert_eq!(logits.dim(), 63);
    assert_all_near(
        logits.values(),
        &floats("logits_unbiased"),
        rounding("logits_unbiased"),
    );
    // The mean over pictures and places, of each channel.
    let spatial = found.spatial.unwrap();
    let means = |values: Vec<f64>, places: usize| -> Vec<f32> {
        let channel = |c: &[f64]| (c.iter().sum::<f64>() / c.len() as f64) as f32;
        values.chunks_exact(places).map(channel).collect()
    };
    let found = means(spatial.mean, 17 * 17);
    let spatial = floats("spatial");
    let expected = (0..7)
        .flat_map(|channel| (0..3).map(move |image| (image, channel)))
        .map(|(image, channel)| f64::from(spatial[image * 7 + channel]));
    assert_all_near(&found, &means(expected.collect(), 3), tolerance);
}

#[test]
fn the_published_network_has_the_published_widths() {
    let network = InceptionV3Config::default().init(&Device::flex());
    assert_eq!(network.dims(), [2048, 1008, 2023]);
    // All floats of a published file.
    assert_eq!(network.num_params(), 23_885_392);
}
