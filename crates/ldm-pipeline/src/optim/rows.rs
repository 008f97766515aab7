//! Single rows of a parameter given a new start.

use burn::module::{ModuleMapper, Param, ParamId};
use burn::tensor::{Bool, Device, IndexingUpdateOp, Int, Tensor, TensorData};

use super::Adam;

/// Gives rows of one matrix of a module new values.
pub(crate) struct SetRows<'a> {
    /// The matrix, `[all rows, columns]`.
    pub(crate) id: ParamId,
    /// Which rows; none twice.
    pub(crate) rows: &'a [usize],
    /// Their values, `[rows, columns]`, without gradients.
    pub(crate) values: Tensor<2>,
}

impl ModuleMapper for SetRows<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if param.id != self.id {
            return param;
        }
        let (id, tensor, mapper) = param.consume();
        let (tracked, checkpointing, shape) = (
            tensor.is_require_grad(),
            tensor.gradient_checkpointing_strategy(),
            tensor.shape(),
        );
        let old: Tensor<2> = tensor.inner().reshape([-1, self.values.dims()[1] as i32]);
        let device = old.device();
        let rows: Vec<i64> = self.rows.iter().map(|&row| row as i64).collect();
        let rows = Tensor::<1, Int>::from_ints(rows.as_slice(), &device);
        let new =
            old.zeros_like()
                .select_assign(0, rows, self.values.clone(), IndexingUpdateOp::Add);
        let chosen = mask(self.rows, old.dims(), &device);
        let mut tensor = old.mask_where(chosen, new).reshape(shape);
        // Back onto the tape as it was: `from_inner` alone would forget both settings.
        if let Some(strategy) = checkpointing {
            tensor = Tensor::from_inner(tensor).with_gradient_checkpointing_strategy(strategy);
        }
        if tracked {
            tensor = tensor.require_grad();
        }
        Param::from_mapped_value(id, tensor, mapper)
    }
}

impl Adam {
    /// Sets both moments of these rows of the parameter `id`, a matrix of so many `columns`, to 0. Its count of updates stays.
    pub(crate) fn forget_rows(&mut self, id: ParamId, rows: &[usize], columns: usize) {
        let Some(moments) = self.moments.get_mut(&id) else {
            return;
        };
        for moment in [&mut moments.first, &mut moments.second] {
            let matrix: Tensor<2> = moment.clone().reshape([-1, columns as i32]);
            let chosen = mask(rows, matrix.dims(), &matrix.device());
            *moment = matrix.mask_fill(chosen, 0.0).flatten(0, 1);
        }
    }
}

/// `true` in these rows, in the shape of a matrix.
fn mask(rows: &[usize], shape: [usize; 2], device: &Device) -> Tensor<2, Bool> {
    let mut chosen = vec![false; shape[0]];
    for &row in rows {
        chosen[row] = true;
    }
    Tensor::<2, Bool>::from_data(TensorData::new(chosen, [shape[0], 1]), device).expand(shape)
}

#[cfg(test)]
mod tests {
    use burn::module::Module;
    use burn::nn::{Linear, LinearConfig};
    use burn::optim::GradientsParams;

    use super::*;
    use crate::optim::AdamConfig;

    fn numbers(tensor: Tensor<2>) -> Vec<f32> {
        tensor.into_data().iter().collect()
    }

    #[test]
    fn only_the_named_rows_start_anew() {
        let mut linear: Linear = LinearConfig::new(4, 3).init(&Device::flex().autodiff());
        let mut adam = AdamConfig::adam_w().init();
        let loss = linear.weight.val().square().sum();
        let gradients = GradientsParams::from_grads(loss.backward(), &linear);
        linear = adam.step(0.1, linear, gradients.into());

        let id = linear.weight.id;
        let before = numbers(linear.weight.val());
        let moments: Vec<f32> = adam.moments[&id]
            .second
            .clone()
            .into_data()
            .iter()
            .collect();
        assert!(moments.iter().all(|moment| *moment > 0.0));
        let fresh = [[1.5, -0.25, 7.0], [0.1, 0.2, 0.3]];
        let mut change = SetRows {
            id,
            rows: &[3, 1],
            values: Tensor::from_floats(fresh, &Device::flex()),
        };
        linear = linear.map(&mut change);
        adam.forget_rows(id, change.rows, 3);

        let after = numbers(linear.weight.val());
        assert_eq!(after[..3], before[..3]);
        assert_eq!(after[6..9], before[6..9]);
        assert_eq!([&after[9..12], &after[3..6]], [fresh[0], fresh[1]]);
        for moment in [&adam.moments[&id].first, &adam.moments[&id].second] {
            let moment: Vec<f32> = moment.clone().into_data().iter().collect();
            for row in 0..4 {
                let forgotten = moment[3 * row..3 * row + 3]
                    .iter()
                    .all(|value| *value == 0.0);
                assert_eq!(forgotten, row % 2 == 1, "row {row}");
            }
        }
        assert!(linear.weight.val().is_require_grad());
    }
}
