//! AVX-512 where loops for all machines fall short. Here the small matrix product, since thirty-two registers hold the sums of more rows.

use std::arch::x86_64::{
    __m512, _mm512_add_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps,
    _mm512_storeu_ps,
};

mod transpose;
mod winograd;

pub(super) use transpose::transpose;
pub(super) use winograd::{transform_gradient, transform_input, transform_output};

use super::{
    gemm::{Matrix, Panels},
    simd::LANES,
};

/// Most rows of a block: with [`PANELS`] of these, its sums fill twenty-four registers.
const ROWS: usize = 12;
/// Panels whose sums a block has, of [`LANES`] columns, which is one register.
const PANELS: usize = 2;

const _: () = assert!(LANES == 16, "a register");

/// Where a block of the product is.
#[derive(Clone, Copy)]
struct Block {
    lhs: *const f32,
    rhs: *const f32,
    out: *mut f32,
}

/// What is the same for all blocks.
#[derive(Clone, Copy)]
struct Layout {
    k: usize,
    lhs: [usize; 2],
    rhs: [usize; 2],
    out_row: usize,
    accumulate: bool,
}

/// [`small_product`](super::gemm::small_product) with the same additions in the same order.
///
/// # Safety
/// The shape must have no 0, the elements that it names must be in their slices, and the machine must have AVX-512.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn small_product(
    [m, panels, k]: [usize; 3],
    out: &mut [f32],
    out_row: usize,
    lhs: Matrix<'_>,
    rhs: Panels<'_>,
    accumulate: bool,
) {
    let layout = Layout {
        k,
        lhs: [lhs.row, lhs.column],
        rhs: [rhs.panel, rhs.step],
        out_row,
        accumulate,
    };
    // Blocks of about one height, rather than full ones and a rest.
    let rows = m.div_ceil(m.div_ceil(ROWS));
    for panel in (0..panels).step_by(PANELS) {
        for row in (0..m).step_by(rows) {
            // SAFETY: within the slices, as the caller promises for the whole.
            unsafe {
                let block = Block {
                    lhs: lhs.data.as_ptr().add(row * lhs.row),
                    rhs: rhs.data.as_ptr().add(panel * rhs.panel),
                    out: out.as_mut_ptr().add(row * out_row + panel * LANES),
                };
                let rows = rows.min(m - row);
                match panels - panel {
                    1 => with_rows::<1>(rows, layout, block),
                    _ => with_rows::<PANELS>(rows, layout, block),
                }
            }
        }
    }
}

/// Calls [`block`] for a number of rows from 1 to [`ROWS`].
///
/// # Safety
/// As of [`block`].
#[target_feature(enable = "avx512f")]
unsafe fn with_rows<const P: usize>(rows: usize, layout: Layout, at: Block) {
    macro_rules! either {
        ($($m:literal)*) => {
            match rows {
                // SAFETY: as the caller promises.
                $($m => unsafe { block::<$m, P>(layout, at) },)*
                _ => unreachable!("{rows} rows in a block"),
            }
        };
    }
    either!(1 2 3 4 5 6 7 8 9 10 11 12);
}

/// The product of `M` rows and `P` panels, its sums in registers.
///
/// # Safety
/// `at` must point to `M` rows of `k`, to `P` panels of `k` rows and to `M` rows of `P` times [`LANES`].
#[target_feature(enable = "avx512f")]
unsafe fn block<const M: usize, const P: usize>(layout: Layout, at: Block) {
    let Layout {
        k,
        lhs: [row, column],
        rhs: [panel, step],
        out_row,
        accumulate,
    } = layout;
    let mut sums: [[__m512; P]; M] = [[_mm512_setzero_ps(); P]; M];
    let mut right: [__m512; P] = [_mm512_setzero_ps(); P];
    // SAFETY: every access is to row `i < M`, panel `j < P` and depth `p < k`.
    unsafe {
        for p in 0..k {
            for (j, right) in right.iter_mut().enumerate() {
                *right = _mm512_loadu_ps(at.rhs.add(j * panel + p * step));
            }
            for (i, sums) in sums.iter_mut().enumerate() {
                let left = _mm512_set1_ps(*at.lhs.add(i * row + p * column));
                for (sum, &right) in sums.iter_mut().zip(&right) {
                    *sum = _mm512_fmadd_ps(left, right, *sum);
                }
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            for (j, &sum) in sums.iter().enumerate() {
                let out = at.out.add(i * out_row + j * LANES);
                let sum = match accumulate {
                    true => _mm512_add_ps(_mm512_loadu_ps(out), sum),
                    false => sum,
                };
                _mm512_storeu_ps(out, sum);
            }
        }
    }
}
