use std::fs;

use super::{assert_near, features, fixture};
use crate::{
    Collected, Error, Features, Gaussian, GaussianAccumulator, SetStatistics, Subsets, compare,
};

fn collected(features: Features) -> Collected {
    Collected {
        features,
        logits: None,
        spatial: Some(Gaussian {
            mean: vec![1.0],
            covariance: vec![2.0],
        }),
    }
}

fn samples() -> SetStatistics {
    let features = features("features.samples");
    SetStatistics::of(collected(features), "random".into(), "here").unwrap()
}

#[test]
fn files_of_numpy_are_read() {
    let mut accumulator = GaussianAccumulator::new(24);
    accumulator.push(features("features.samples").values());
    let gaussian = accumulator.finish().unwrap();
    let compressed = SetStatistics::read(&fixture("compressed.npz")).unwrap();
    assert_eq!(compressed.name, None);
    for (found, expected) in [
        (&compressed.gaussian.mean, &gaussian.mean),
        (&compressed.gaussian.covariance, &gaussian.covariance),
    ] {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-10);
        }
    }
    // 32 bits, column order, 1 added above and on the diagonal, and an array that isn't of floats.
    let stored = SetStatistics::read(&fixture("stored.npz"))
        .unwrap()
        .gaussian;
    for row in 0..24 {
        assert_near(stored.mean[row], gaussian.mean[row], 1e-6);
        for column in 0..24 {
            let added = if column >= row { 1.0 } else { 0.0 };
            let index = row * 24 + column;
            let difference = stored.covariance[index] - gaussian.covariance[index];
            assert!((difference - added).abs() < 1e-9);
        }
    }
}

#[test]
fn own_files_are_read_as_they_were_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("statistics.safetensors");
    let statistics = samples();
    fs::write(&path, statistics.to_bytes()).unwrap();
    assert_eq!(SetStatistics::read(&path).unwrap(), statistics);
}

#[test]
fn damaged_files_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("statistics");
    let problem = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        match SetStatistics::read(&path) {
            Err(Error::Statistics { problem, .. }) => problem,
            other => panic!("{other:?}"),
        }
    };
    assert!(problem(b"text").contains("neither an .npz nor"));
    let npz = fs::read(fixture("compressed.npz")).unwrap();
    assert!(problem(&npz[..npz.len() - 30]).contains("cut off"));
    for at in [60, npz.len() / 2] {
        let mut damaged = npz.clone();
        damaged[at] ^= 0xff;
        assert!(problem(&damaged).contains("damaged"));
    }
    let own = samples().to_bytes();
    assert!(!problem(&own[..own.len() / 2]).is_empty());
    let mut statistics = samples();
    statistics.gaussian.mean[3] = f64::NAN;
    assert!(problem(&statistics.to_bytes()).contains("no number"));
    let text = "there is no `mu`";
    let other = fs::read(fixture("arrays.safetensors")).unwrap();
    assert!(problem(&other).contains(text));
    assert!(matches!(
        SetStatistics::read(&folder.path().join("missing")),
        Err(Error::Read { .. })
    ));
}

#[test]
fn one_picture_is_too_few() {
    let one = Features::from_values(3, vec![0.0; 3]);
    let error = SetStatistics::of(collected(one), "random".into(), "pictures/").unwrap_err();
    assert_eq!(
        error.to_string(),
        "pictures/ has one picture, too few for a covariance, which needs 2"
    );
    assert!(error.help().is_some());
}

#[test]
fn everything_that_the_statistics_allow_is_measured() {
    let real = features("features.real");
    let real = SetStatistics::of(collected(real), "random".into(), "real").unwrap();
    let logits = features("logits");
    let sets = ["real", "samples"];
    let subsets = Subsets::default();
    let found = compare(&real, &samples(), Some(&logits), subsets, sets).unwrap();
    assert_near(
        found.frechet,
        super::expected("frechet_inception_distance"),
        1e-9,
    );
    assert_eq!(found.spatial_frechet, Some(0.0));
    assert_eq!(found.subsets.unwrap().size, 60);
    assert!(found.kernel.is_some() && found.manifold.is_some() && found.inception_score.is_some());

    let bare = SetStatistics::read(&fixture("compressed.npz")).unwrap();
    let found = compare(&bare, &samples(), None, subsets, sets).unwrap();
    assert!(found.frechet.abs() < 1e-6);
    let rest = (found.spatial_frechet, found.kernel, found.manifold);
    assert_eq!((rest, found.inception_score), ((None, None, None), None));
}

#[test]
fn statistics_of_other_features_are_refused() {
    let sets = ["real.npz", "samples/"];
    let subsets = Subsets::default();
    let other = SetStatistics {
        name: Some("VGG16".into()),
        ..samples()
    };
    let error = compare(&other, &samples(), None, subsets, sets).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the statistics in real.npz are of 24 features (VGG16), those of samples/ of 24 features (random)"
    );
    let narrow = Features::from_values(2, vec![0.0, 1.0, 2.0, 5.0]);
    let narrow = SetStatistics::of(collected(narrow), "random".into(), "narrow").unwrap();
    assert!(compare(&narrow, &samples(), None, subsets, sets).is_err());
}
