//! The Kernel Inception Distance (Bińkowski et al. 2018).

use faer::Mat;

use crate::{
    MeanAndDeviation,
    features::Features,
    linalg::{columns, products},
    numpy_order::NumpyOrder,
};

/// torch-fidelity's seed.
const SEED: u32 = 2020;

/// Which pictures a [`kernel_distance`] compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subsets {
    /// Their number.
    pub count: usize,
    /// Pictures of each side in one of them.
    pub size: usize,
}

impl Default for Subsets {
    /// Those of torch-fidelity.
    fn default() -> Self {
        Self {
            count: 100,
            size: 1000,
        }
    }
}

impl Subsets {
    /// The same number, none larger than the smaller of two sets; one where it is all of both, since others would be the same.
    #[must_use]
    pub fn within(self, a: &Features, b: &Features) -> Self {
        let size = self.size.min(a.len()).min(b.len());
        let is_all = a.len() == size && b.len() == size;
        Self {
            count: if is_all {
                self.count.min(1)
            } else {
                self.count
            },
            size,
        }
    }
}

/// The squared maximum mean discrepancy under the kernel `(x.y / D + 1)^3`, by its unbiased estimate, which may be negative: mean and
/// standard deviation over random subsets of both sets. The order of the two decides on the subsets drawn.
///
/// `None` if a subset would have fewer than two pictures, or there is no subset.
///
/// # Panics
/// If the sets differ in the number of features, or a subset is larger than a set.
pub fn kernel_distance(a: &Features, b: &Features, subsets: Subsets) -> Option<MeanAndDeviation> {
    assert_eq!(a.dim(), b.dim(), "sets of the same features");
    if subsets.size < 2 || subsets.count == 0 {
        return None;
    }
    let mut order = NumpyOrder::new(SEED);
    let estimates: Vec<f64> = (0..subsets.count)
        .map(|_| {
            let [a, b] = [a, b].map(|set| {
                let chosen = order.permutation(set.len());
                columns(set, chosen[..subsets.size].iter().copied())
            });
            discrepancy(&a, &b)
        })
        .collect();
    Some(MeanAndDeviation::of(&estimates))
}

/// The unbiased estimate for two sets of `m` columns each: the diagonals of the kernels within a set are left out.
fn discrepancy(a: &Mat<f64>, b: &Mat<f64>) -> f64 {
    let m = a.ncols() as f64;
    let within = |set: &Mat<f64>| {
        let (all, diagonal) = kernel_sums(set, set);
        (all - diagonal) / (m * (m - 1.0))
    };
    let (between, _) = kernel_sums(a, b);
    within(a) + within(b) - 2.0 * between / (m * m)
}

/// The sums of the kernel over all pairs and over the pairs of equal number.
fn kernel_sums(a: &Mat<f64>, b: &Mat<f64>) -> (f64, f64) {
    let dim = a.nrows() as f64;
    let kernel = |dot: f64| (dot / dim + 1.0).powi(3);
    let dots = products(a.as_ref(), b.as_ref());
    let all = (dots.col_iter())
        .map(|column| column.iter().map(|&dot| kernel(dot)).sum::<f64>())
        .sum();
    let diagonal = (0..a.ncols()).map(|i| kernel(dots[(i, i)])).sum();
    (all, diagonal)
}
