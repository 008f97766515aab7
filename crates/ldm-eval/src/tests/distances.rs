use super::{assert_near, expected, features};
use crate::{
    Features, Gaussian, GaussianAccumulator, Neighbour, Subsets, inception_score, kernel_distance,
    memorisation, nearest, numpy_order::NumpyOrder, precision_recall,
};

fn gaussian(features: &Features, rows: usize) -> Gaussian {
    let mut accumulator = GaussianAccumulator::new(features.dim());
    accumulator.push(&features.values()[..rows * features.dim()]);
    accumulator.finish().unwrap()
}

/// Rows of whole numbers that look drawn by lot.
fn rows(count: usize, dim: usize) -> Features {
    let value = |index: usize| ((index * 7919 + index * index * 31) % 1009) as f32 / 100.0;
    Features::from_values(dim, (0..count * dim).map(value).collect())
}

#[test]
fn the_frechet_distance_is_torch_fidelitys() {
    let (samples, real) = (features("features.samples"), features("features.real"));
    let distance = |rows: [usize; 2]| {
        let [samples, real] = [gaussian(&samples, rows[0]), gaussian(&real, rows[1])];
        let distance = real.frechet_distance(&samples).unwrap();
        let swapped = samples.frechet_distance(&real).unwrap();
        assert_near(swapped, distance, 1e-9);
        distance
    };
    let whole = distance([samples.len(), real.len()]);
    assert_near(whole, expected("frechet_inception_distance"), 1e-9);
    // Singular covariances, whose roots amplify the reference's rounding.
    let few = distance([15, 15]);
    assert_near(few, expected("frechet_inception_distance_of_15"), 1e-6);
}

#[test]
fn a_set_is_at_no_distance_from_itself() {
    let all = gaussian(&rows(300, 40), 300);
    let trace: f64 = (0..40).map(|i| all.covariance[i * 41]).sum();
    assert!(all.frechet_distance(&all).unwrap().abs() < 1e-9 * trace);
    let constant = gaussian(&Features::from_values(3, vec![2.0; 12]), 4);
    assert_eq!(constant.frechet_distance(&constant).unwrap(), 0.0);
}

#[test]
fn batches_add_up_to_the_covariance_of_all() {
    let features = rows(700, 5);
    let whole = gaussian(&features, 700);
    let mut accumulator = GaussianAccumulator::new(5);
    for batch in features.values().chunks(5 * 33) {
        accumulator.push(batch);
    }
    assert_eq!(accumulator.count(), 700);
    assert_eq!(accumulator.finish().unwrap(), whole);
    for a in 0..5 {
        let mean: f64 = (0..700).map(|i| f64::from(features.row(i)[a])).sum::<f64>() / 700.0;
        assert_near(whole.mean[a], mean, 1e-12);
        for b in 0..5 {
            let product = |i: usize| {
                let row = features.row(i);
                (f64::from(row[a]) - whole.mean[a]) * (f64::from(row[b]) - whole.mean[b])
            };
            let covariance = (0..700).map(product).sum::<f64>() / 699.0;
            let scale = whole.covariance[6 * a];
            assert!((whole.covariance[5 * a + b] - covariance).abs() < 1e-12 * scale);
        }
    }
}

#[test]
fn one_row_has_no_covariance() {
    let mut accumulator = GaussianAccumulator::new(2);
    accumulator.push(&[1.0, 2.0]);
    assert_eq!(accumulator.finish(), None);
}

#[test]
fn the_kernel_distance_is_torch_fidelitys() {
    let subsets = Subsets {
        count: 10,
        size: 40,
    };
    let found = kernel_distance(
        &features("features.samples"),
        &features("features.real"),
        subsets,
    );
    let found = found.unwrap();
    assert_near(found.mean, expected("kernel_inception_distance_mean"), 1e-9);
    assert_near(
        found.deviation,
        expected("kernel_inception_distance_std"),
        1e-9,
    );
}

#[test]
fn subsets_are_no_larger_than_the_sets() {
    let (few, many) = (rows(12, 4), rows(50, 4));
    let subsets = Subsets::default().within(&few, &many);
    assert_eq!((subsets.count, subsets.size), (100, 12));
    // All subsets would be the same.
    let all = Subsets::default().within(&few, &few);
    assert_eq!((all.count, all.size), (1, 12));
    assert_eq!(kernel_distance(&few, &few, all).unwrap().deviation, 0.0);
    let one = Features::from_values(4, vec![1.0; 4]);
    assert_eq!(
        kernel_distance(&one, &many, subsets.within(&one, &many)),
        None
    );
}

#[test]
fn precision_and_recall_are_torch_fidelitys() {
    let (samples, real) = (features("features.samples"), features("features.real"));
    let found = precision_recall(&real, &samples).unwrap();
    assert_near(found.precision, expected("precision"), 1e-7);
    assert_near(found.recall, expected("recall"), 1e-7);
    // More rows than one block of distances.
    let many = rows(600, 3);
    let itself = precision_recall(&many, &many).unwrap();
    assert_eq!((itself.precision, itself.recall), (1.0, 1.0));
    assert_eq!(precision_recall(&rows(3, 3), &many), None);
}

#[test]
fn the_inception_score_is_torch_fidelitys() {
    let found = inception_score(&features("logits")).unwrap();
    assert_near(found.mean, expected("inception_score_mean"), 1e-9);
    assert_near(found.deviation, expected("inception_score_std"), 1e-9);
    assert_eq!(inception_score(&rows(9, 4)), None);
    // Every picture of a class of its own.
    let sure =
        (0..40).flat_map(|row| (0..4).map(move |class| if row % 4 == class { 1e4 } else { 0.0 }));
    let sure = inception_score(&Features::from_values(4, sure.collect())).unwrap();
    assert!(sure.mean.is_finite() && sure.mean > 2.0 && sure.mean <= 4.0);
}

#[test]
fn orders_are_numpys() {
    let text = std::fs::read_to_string(super::fixture("expected.json")).unwrap();
    let values: serde_json::Value = serde_json::from_str(&text).unwrap();
    let order = NumpyOrder::new(2020).permutation(12);
    assert_eq!(serde_json::json!(order), values["permutation"]);
    let chosen = &NumpyOrder::new(2020).permutation(1000)[..5];
    assert_eq!(serde_json::json!(chosen), values["choice"]);
}

#[test]
fn the_nearest_row_is_found() {
    let set = rows(3000, 4);
    let mut samples = Features::new(4);
    for index in [2999, 0, 1234] {
        let mut row = set.row(index).to_vec();
        row[1] += 0.003;
        samples.push(&row);
    }
    let found = nearest(&samples, &set);
    for (neighbour, index) in found.iter().zip([2999, 0, 1234]) {
        // Rows may be equal to each other.
        assert_eq!(set.row(neighbour.index), set.row(index));
        assert!((neighbour.distance - 0.003).abs() < 1e-5);
    }
}

#[test]
fn copies_are_nearer_than_new_pictures() {
    let at = |distance| Neighbour { index: 0, distance };
    let held_out = [at(1.0), at(2.0), at(4.0), at(8.0)];
    let samples = [at(3.0), at(0.1), at(6.0)];
    let found = memorisation(&samples, &held_out, 0.25);
    assert_eq!(
        (found.median, found.held_out_median, found.ratio),
        (3.0, 3.0, 1.0)
    );
    assert_eq!((found.least, found.copying_distance), (0.1, 0.75));
    assert_eq!(found.copies, [1]);
}
