use std::ops::ControlFlow;

use burn::tensor::Device;
use image::{Rgb, RgbImage};
use ldm_autoencoder::LpipsConfig;

use crate::{Collector, Error, Extractor, Pictures, content_key, extract};

/// Plain pictures of grey levels.
struct Greys {
    levels: Vec<u8>,
    side: u32,
}

impl Pictures for Greys {
    type Error = Error;

    fn len(&self) -> usize {
        self.levels.len()
    }

    fn name(&self, index: usize) -> String {
        format!("grey-{index}")
    }

    fn get(&self, index: usize) -> Result<RgbImage, Error> {
        let level = Rgb([self.levels[index]; 3]);
        Ok(RgbImage::from_pixel(self.side, self.side, level))
    }
}

fn greys(levels: &[u8]) -> Greys {
    Greys {
        levels: levels.into(),
        side: 5,
    }
}

#[test]
fn batches_keep_the_order_of_the_pictures() {
    let mut done = Vec::new();
    let found = extract(
        &greys(&[0, 51, 102, 255]),
        "greys",
        &Extractor::Pixels,
        3,
        &Device::flex(),
        |count| {
            done.push(count);
            ControlFlow::Continue(())
        },
    );
    let features = found.unwrap().features;
    assert_eq!((features.len(), features.dim()), (4, 75));
    assert_eq!(done, [3, 4]);
    // Distances are root mean squares.
    let length: f32 = features.row(1).iter().map(|value| value * value).sum();
    assert!((length.sqrt() - 0.2).abs() < 1e-6);
}

#[test]
fn stopped_work_has_no_result() {
    let stop = |_| ControlFlow::Break(());
    let device = Device::flex();
    let found = extract(
        &greys(&[1, 2]),
        "greys",
        &Extractor::Pixels,
        1,
        &device,
        stop,
    );
    assert!(matches!(found, Err(Error::Stopped)));
    let go_on = |_| ControlFlow::Continue(());
    let none = extract(&greys(&[]), "greys", &Extractor::Pixels, 1, &device, go_on);
    assert_eq!(
        none.unwrap_err().to_string(),
        "greys has no pictures, too few for a measurement, which needs 1"
    );
}

#[test]
fn pictures_of_another_size_are_named() {
    let device = Device::flex();
    let mut collector = Collector::new(&Extractor::Pixels, &device);
    let name = |index| format!("picture {index}");
    collector.push(&[RgbImage::new(4, 3)], name).unwrap();
    let error = (collector.push(&[RgbImage::new(4, 3), RgbImage::new(3, 4)], name)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "picture 1 has 3 x 4 pixels, but picture 0 has 4 x 3"
    );
}

#[test]
fn vgg_features_are_means_over_the_picture() {
    let device = Device::flex();
    let network = LpipsConfig {
        heads: false,
        ..LpipsConfig::default()
    }
    .init(&device);
    let extractor = Extractor::Vgg {
        network,
        side: 32,
        weights: "random".into(),
    };
    let go_on = |_| ControlFlow::Continue(());
    let found = extract(&greys(&[0, 200]), "greys", &extractor, 2, &device, go_on).unwrap();
    assert_eq!((found.features.len(), found.features.dim()), (2, 512));
    assert!(found.features.values().iter().all(|&value| value >= 0.0));
    assert_ne!(found.features.row(0), found.features.row(1));
    assert!(found.logits.is_none() && found.spatial.is_none());
}

#[test]
fn the_key_changes_with_pictures_order_and_network() {
    let key = |levels: &[u8]| content_key(&greys(levels), &Extractor::Pixels).unwrap();
    assert_eq!(key(&[1, 2]), key(&[1, 2]));
    assert_ne!(key(&[1, 2]), key(&[2, 1]));
    assert_ne!(key(&[1, 2]), key(&[1, 2, 3]));
    let larger = Greys {
        side: 6,
        ..greys(&[1, 2])
    };
    assert_ne!(
        key(&[1, 2]),
        content_key(&larger, &Extractor::Pixels).unwrap()
    );
}
