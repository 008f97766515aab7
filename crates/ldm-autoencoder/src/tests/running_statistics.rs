use burn::prelude::*;

use super::uniform;
use crate::PatchDiscriminatorConfig;

#[test]
fn running_statistics_are_put_back() {
    let config = PatchDiscriminatorConfig {
        channels: 4,
        layers: 2,
        ..PatchDiscriminatorConfig::default()
    };
    let discriminator = config.init(&Device::flex().autodiff());
    let judge = || -> Vec<f32> {
        let judged = discriminator
            .valid()
            .forward(uniform([1, 3, 16, 16], 1.0, 1));
        judged.into_data().iter().collect()
    };
    discriminator.forward(uniform([2, 3, 16, 16], 1.0, 2));
    let (statistics, before) = (discriminator.running_statistics(), judge());
    // The generator's view shares them, and a NaN stays in them for good.
    for scale in [3.0, f32::NAN] {
        discriminator
            .frozen()
            .forward(uniform([2, 3, 16, 16], scale, 3));
        assert_ne!(judge(), before);
    }
    discriminator.restore_running_statistics(&statistics);
    assert_eq!(judge(), before);
    discriminator.forward(uniform([2, 3, 16, 16], 3.0, 4));
    assert_ne!(judge(), before);
}
