//! Matrix products: the `gemm` crate's for whole matrices, and a small one for operands that a kernel lays out itself.

use gemm::Parallelism;

use super::simd::{LANES, mul_add, multiversion};
#[cfg(target_arch = "x86_64")]
use super::{
    avx512,
    simd::{Level, level},
};

/// Rows of the micro-kernel: with two registers a row, its accumulators fill twelve of AVX2's sixteen.
const ROWS: usize = 6;

/// A matrix in a slice: element `(i, j)` is at `i * row + j * column`.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    pub(super) data: &'a [f32],
    pub(super) row: usize,
    pub(super) column: usize,
}

impl<'a> Matrix<'a> {
    /// A matrix stored row by row.
    pub(super) fn rows(data: &'a [f32], columns: usize) -> Self {
        Self {
            data,
            row: columns,
            column: 1,
        }
    }

    /// The transpose, of the same elements.
    pub(super) fn transposed(self) -> Self {
        Self {
            data: self.data,
            row: self.column,
            column: self.row,
        }
    }

    fn assert_holds(&self, rows: usize, columns: usize) {
        assert!((rows - 1) * self.row + (columns - 1) * self.column < self.data.len());
    }
}

/// `out = scale * lhs rhs`, plus `out` if `accumulate`; `out` is `[m, n]`, row by row, and `k` the common length.
///
/// `threads` splits the product over rayon's threads, which does not change the result.
pub(super) fn product(
    [m, n, k]: [usize; 3],
    out: &mut [f32],
    (lhs, rhs): (Matrix<'_>, Matrix<'_>),
    scale: f32,
    accumulate: bool,
    threads: bool,
) {
    assert_eq!(out.len(), m * n);
    lhs.assert_holds(m, k);
    rhs.assert_holds(k, n);
    let parallelism = if threads {
        Parallelism::Rayon(0)
    } else {
        Parallelism::None
    };
    // SAFETY: every element that the product reads or writes was just checked to be in its slice; `out` is borrowed
    // exclusively, so it overlaps neither operand.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n as isize,
            accumulate,
            lhs.data.as_ptr(),
            lhs.column as isize,
            lhs.row as isize,
            rhs.data.as_ptr(),
            rhs.column as isize,
            rhs.row as isize,
            1.0,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// A right operand in panels of [`LANES`] columns: row `p` of panel `j` starts at `j * panel + p * step`.
#[derive(Clone, Copy)]
pub(super) struct Panels<'a> {
    pub(super) data: &'a [f32],
    pub(super) panel: usize,
    pub(super) step: usize,
}

/// `out = lhs rhs`, plus `out` if `accumulate`, on this thread: `shape` is `[m, panels of rhs, k]`, and row `i` of
/// `out` starts at `i * out_row`.
pub(super) fn small_product(
    shape: [usize; 3],
    out: &mut [f32],
    out_row: usize,
    lhs: Matrix<'_>,
    rhs: Panels<'_>,
    accumulate: bool,
) {
    let [m, panels, k] = shape;
    if m == 0 || panels == 0 || k == 0 {
        return;
    }
    lhs.assert_holds(m, k);
    assert!((panels - 1) * rhs.panel + (k - 1) * rhs.step + LANES <= rhs.data.len());
    assert!((m - 1) * out_row + panels * LANES <= out.len());
    #[cfg(target_arch = "x86_64")]
    if level() == Level::Avx512 {
        // SAFETY: the machine has AVX-512, and all elements were just checked to be in their slices.
        return unsafe { avx512::small_product(shape, out, out_row, lhs, rhs, accumulate) };
    }
    by_lanes(shape, out, out_row, lhs, rhs, accumulate);
}

multiversion! {
    /// [`small_product`] in the lanes of any machine, for a shape without a 0 that was checked to be in the slices.
    fn by_lanes(
        shape: [usize; 3], out: &mut [f32], out_row: usize, lhs: Matrix<'_>, rhs: Panels<'_>, accumulate: bool,
    ) {
        let [m, panels, k] = shape;
        for panel in 0..panels {
            for row in (0..m).step_by(ROWS) {
                // SAFETY: the kernel stays within `rows` rows of `lhs` and `out` from `row`, and within `k` rows of
                // the panel, which the caller has checked to be in their slices.
                unsafe {
                    let lhs = Matrix { data: lhs.data.get_unchecked(row * lhs.row..), ..lhs };
                    let rhs = Panels { data: rhs.data.get_unchecked(panel * rhs.panel..), ..rhs };
                    let out = out.get_unchecked_mut(row * out_row + panel * LANES..);
                    match m - row {
                        1 => micro_kernel::<1, FMA>(k, out, out_row, lhs, rhs, accumulate),
                        2 => micro_kernel::<2, FMA>(k, out, out_row, lhs, rhs, accumulate),
                        3 => micro_kernel::<3, FMA>(k, out, out_row, lhs, rhs, accumulate),
                        4 => micro_kernel::<4, FMA>(k, out, out_row, lhs, rhs, accumulate),
                        5 => micro_kernel::<5, FMA>(k, out, out_row, lhs, rhs, accumulate),
                        _ => micro_kernel::<ROWS, FMA>(k, out, out_row, lhs, rhs, accumulate),
                    }
                }
            }
        }
    }
}

/// The product of `M` rows of `lhs` and one panel of `rhs`, its sums in registers.
///
/// # Safety
/// `lhs` must hold `M` rows of `k`, `rhs` `k` rows of [`LANES`], and `out` `M` rows of [`LANES`].
#[inline(always)]
unsafe fn micro_kernel<const M: usize, const FMA: bool>(
    k: usize,
    out: &mut [f32],
    out_row: usize,
    lhs: Matrix<'_>,
    rhs: Panels<'_>,
    accumulate: bool,
) {
    let mut sums = [[0.0f32; LANES]; M];
    for p in 0..k {
        // SAFETY: row `p < k` of the panel; an array of floats needs no more than a float's alignment.
        let right = unsafe { &*rhs.data.as_ptr().add(p * rhs.step).cast::<[f32; LANES]>() };
        for (i, sums) in sums.iter_mut().enumerate() {
            // SAFETY: row `i < M`, column `p < k`.
            let left = unsafe { *lhs.data.get_unchecked(i * lhs.row + p * lhs.column) };
            for (sum, &right) in sums.iter_mut().zip(right) {
                *sum = mul_add::<FMA>(left, right, *sum);
            }
        }
    }
    for (i, sums) in sums.iter().enumerate() {
        // SAFETY: row `i < M` of `out`.
        let out = unsafe { out.get_unchecked_mut(i * out_row..i * out_row + LANES) };
        if accumulate {
            for (out, sum) in out.iter_mut().zip(sums) {
                *out += sum;
            }
        } else {
            out.copy_from_slice(sums);
        }
    }
}
