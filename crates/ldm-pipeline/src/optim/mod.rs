//! Optimisation: Adam and AdamW, gradients of a step with clipping and accumulation, learning-rate schedules.
//!
//! burn's own optimisers are not used, for four reasons: their checkpoint names parameters by random ids; they are
//! restored onto whatever the default device is; their bias corrections are rounded to `f32`; and on a CPU they take
//! fifteen passes over memory for what one can do.

mod adam;
mod all_reduce;
mod gradients;
#[cfg(test)]
mod joint_batch;
mod norms;
mod rows;
mod schedule;

pub(crate) use adam::Moments;
pub use adam::{Adam, AdamConfig};
pub use gradients::{Accumulator, Gradients};
pub use norms::{ComponentOf, Norms};
pub(crate) use rows::SetRows;
pub use schedule::{Decay, LrSchedule};

use burn::backend::DispatchDevice;
use burn::tensor::{DType, Device, Tensor};

/// Whether a plain `f32` tensor's values lie in the host's memory as they are, so that taking them out and putting
/// them back costs nothing and loops over slices beat tensor operations.
fn on_host<const D: usize>(tensor: &Tensor<D>) -> bool {
    tensor.dtype() == DType::F32 && is_host(&tensor.device())
}

fn is_host(device: &Device) -> bool {
    match device.as_dispatch() {
        #[cfg(feature = "flex")]
        DispatchDevice::Flex(_) => true,
        #[allow(unreachable_patterns)]
        _ => false,
    }
}
