//! Mean and covariance of features, and the Fréchet distance between two Gaussians (Heusel et al. 2017, equation 6; Dowson & Landau
//! 1982).

use faer::{Mat, MatRef};

use crate::{
    error::Error,
    linalg::{add_gram, eigenvalues, root, square},
};

/// Rows that enter the covariance by one product.
const BUFFERED: usize = 256;

/// Mean and covariance of `D` features.
#[derive(Clone, Debug, PartialEq)]
pub struct Gaussian {
    /// `[D]`.
    pub mean: Vec<f64>,
    /// `[D, D]`, row after row; the sum of squares is divided by one less than the number of pictures.
    pub covariance: Vec<f64>,
}

impl Gaussian {
    /// Number of features.
    pub fn dim(&self) -> usize {
        self.mean.len()
    }

    /// `|m1 - m2|^2 + tr(S1 + S2 - 2 sqrt(S1 S2))`: 0 for equal Gaussians.
    ///
    /// The trace of the root is the sum of the roots of the eigenvalues of `S1 S2`, which are those of the symmetric `L^T S2 L` where
    /// `S1 = L L^T`. torch-fidelity takes them of the product itself, pytorch-fid the trace of the root: the same number, up to rounding.
    ///
    /// # Errors
    /// If an eigenvalue isn't found.
    ///
    /// # Panics
    /// If the two differ in the number of features.
    pub fn frechet_distance(&self, other: &Self) -> Result<f64, Error> {
        let dim = self.dim();
        assert_eq!(dim, other.dim(), "Gaussians over the same features");
        let between: f64 = (self.mean.iter().zip(&other.mean))
            .map(|(a, b)| (a - b) * (a - b))
            .sum();
        let trace =
            |gaussian: &Self| -> f64 { (0..dim).map(|i| gaussian.covariance[i * (dim + 1)]).sum() };
        let root = root(square(&self.covariance, dim))?;
        let within = if root.ncols() == 0 {
            0.0
        } else {
            let product = root.transpose() * square(&other.covariance, dim) * &root;
            let roots = eigenvalues(product.as_ref())?;
            roots.into_iter().map(|value| value.max(0.0).sqrt()).sum()
        };
        Ok(between + trace(self) + trace(other) - 2.0 * within)
    }
}

/// Mean and covariance of features that come in batches, in f64 and without keeping them.
#[derive(Clone, Debug)]
pub struct GaussianAccumulator {
    count: usize,
    mean: Vec<f64>,
    /// Sum of the outer products of the deviations from the mean.
    scatter: Mat<f64>,
    /// Rows that are still to come in.
    buffer: Vec<f64>,
}

impl GaussianAccumulator {
    /// Nothing yet, of `dim` features.
    pub fn new(dim: usize) -> Self {
        Self {
            count: 0,
            mean: vec![0.0; dim],
            scatter: Mat::zeros(dim, dim),
            buffer: Vec::new(),
        }
    }

    /// Number of rows so far.
    pub fn count(&self) -> usize {
        self.count + self.buffer.len() / self.mean.len()
    }

    /// Takes in rows of features, one after the other.
    ///
    /// # Panics
    /// If the values fill no whole number of rows.
    pub fn push(&mut self, rows: &[f32]) {
        let dim = self.mean.len();
        assert_eq!(rows.len() % dim, 0, "whole rows of {dim}");
        for row in rows.chunks_exact(dim) {
            self.buffer
                .extend(row.iter().map(|&value| f64::from(value)));
            if self.buffer.len() == BUFFERED * dim {
                self.flush();
            }
        }
    }

    /// The Gaussian of all rows; `None` of fewer than two, which have no covariance.
    pub fn finish(mut self) -> Option<Gaussian> {
        self.flush();
        if self.count < 2 {
            return None;
        }
        let dim = self.mean.len();
        let divisor = (self.count - 1) as f64;
        let covariance = (0..dim * dim)
            .map(|index| self.scatter[(index / dim, index % dim)] / divisor)
            .collect();
        Some(Gaussian {
            mean: self.mean,
            covariance,
        })
    }

    /// Merges the buffered rows by the update of Chan et al. (1979): their scatter about their own mean, and that between the means.
    fn flush(&mut self) {
        let dim = self.mean.len();
        let added = self.buffer.len() / dim;
        if added == 0 {
            return;
        }
        let mut mean = vec![0.0; dim];
        for row in self.buffer.chunks_exact(dim) {
            for (sum, value) in mean.iter_mut().zip(row) {
                *sum += value / added as f64;
            }
        }
        let (before, after) = (self.count as f64, (self.count + added) as f64);
        for row in self.buffer.chunks_exact_mut(dim) {
            for (value, mean) in row.iter_mut().zip(&mean) {
                *value -= mean;
            }
        }
        // One more row, scaled, for the scatter between the means.
        let weight = (before * added as f64 / after).sqrt();
        for (value, old) in mean.iter().zip(&self.mean) {
            self.buffer.push(weight * (value - old));
        }
        let rows = MatRef::from_row_major_slice(&self.buffer, added + 1, dim);
        add_gram(&mut self.scatter, rows);
        for (old, new) in self.mean.iter_mut().zip(&mean) {
            *old += (new - *old) * added as f64 / after;
        }
        self.count += added;
        self.buffer.clear();
    }
}
