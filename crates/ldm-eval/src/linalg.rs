//! Dense linear algebra in f64: products, symmetric eigenvalues, distances between rows.

use std::ops::Range;

use faer::{
    Accum, Mat, MatRef, Side, get_global_parallelism, linalg::matmul::matmul as multiply_into,
};

use crate::{error::Error, features::Features};

/// Rows of the other set that distances are worked out for at a time.
const COLUMNS: usize = 2048;

/// A symmetric matrix, `[D, D]`, row after row.
pub(crate) fn square(values: &[f64], dim: usize) -> MatRef<'_, f64> {
    MatRef::from_row_major_slice(values, dim, dim)
}

/// `target += a^T a` for rows `a`, `[n, D]`.
pub(crate) fn add_gram(target: &mut Mat<f64>, a: MatRef<'_, f64>) {
    let parallel = get_global_parallelism();
    multiply_into(target, Accum::Add, a.transpose(), a, 1.0, parallel);
}

/// `a^T b` for pictures as columns, `[D, n]` and `[D, m]`.
pub(crate) fn products(a: MatRef<'_, f64>, b: MatRef<'_, f64>) -> Mat<f64> {
    let mut target = Mat::zeros(a.ncols(), b.ncols());
    let parallel = get_global_parallelism();
    let a = a.transpose();
    multiply_into(&mut target, Accum::Replace, a, b, 1.0, parallel);
    target
}

/// The eigenvalues of a symmetric matrix.
pub(crate) fn eigenvalues(matrix: MatRef<'_, f64>) -> Result<Vec<f64>, Error> {
    matrix
        .self_adjoint_eigenvalues(Side::Lower)
        .map_err(|_| Error::Eigenvalues)
}

/// A matrix `l` of full column rank with `l l^T` equal to the positive semidefinite `matrix`, up to eigenvalues that are rounding.
pub(crate) fn root(matrix: MatRef<'_, f64>) -> Result<Mat<f64>, Error> {
    let eigen = (matrix.self_adjoint_eigen(Side::Lower)).map_err(|_| Error::Eigenvalues)?;
    let (vectors, values) = (eigen.U(), eigen.S().column_vector());
    let dim = matrix.nrows();
    let largest = (0..dim).map(|i| values[i]).fold(0.0, f64::max);
    let least = largest * dim as f64 * f64::EPSILON;
    let kept: Vec<usize> = (0..dim).filter(|&i| values[i] > least).collect();
    Ok(Mat::from_fn(dim, kept.len(), |row, column| {
        vectors[(row, kept[column])] * values[kept[column]].sqrt()
    }))
}

/// Some pictures' features in f64, one picture a column: `[D, n]`.
pub(crate) fn columns(
    features: &Features,
    indices: impl ExactSizeIterator<Item = usize>,
) -> Mat<f64> {
    let mut columns = Mat::zeros(features.dim(), indices.len());
    for (column, index) in columns.col_iter_mut().zip(indices) {
        for (to, &from) in column.iter_mut().zip(features.row(index)) {
            *to = f64::from(from);
        }
    }
    columns
}

/// Euclidean distances from the rows `range` of `a` to all rows of `b`, row after row.
pub(crate) fn distances(a: &Features, range: Range<usize>, b: &Features) -> Vec<f64> {
    let (count, others) = (range.len(), b.len());
    let from = columns(a, range);
    let lengths = squared_lengths(from.as_ref());
    let mut distances = vec![0.0; count * others];
    for first in (0..others).step_by(COLUMNS) {
        let to = columns(b, first..others.min(first + COLUMNS));
        let other_lengths = squared_lengths(to.as_ref());
        let dots = products(from.as_ref(), to.as_ref());
        for (row, length) in lengths.iter().enumerate() {
            let line = &mut distances[row * others + first..][..other_lengths.len()];
            for (column, (distance, other)) in line.iter_mut().zip(&other_lengths).enumerate() {
                let squared = length + other - 2.0 * dots[(row, column)];
                *distance = squared.max(0.0).sqrt();
            }
        }
    }
    distances
}

fn squared_lengths(columns: MatRef<'_, f64>) -> Vec<f64> {
    (columns.col_iter())
        .map(|column| column.iter().map(|value| value * value).sum())
        .collect()
}
