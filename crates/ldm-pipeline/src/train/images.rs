//! From a data set to tensors.

use std::ops::Range;

use burn::tensor::{Device, Tensor, TensorData};

use super::{Event, Observer};
use crate::data::{Batch, DataError, Dataset, ImageDataset};

/// The readable ones among some samples, `[N, C, H, W]`, and their numbers; `None` if there are none. Nothing random is done to them.
///
/// Damaged ones are passed over in silence: [`DamageReport`](super::damaged::DamageReport) names them.
pub(crate) fn load_images(
    set: &dyn Dataset,
    indices: Range<usize>,
    device: &Device,
) -> Option<(Tensor<4>, Vec<usize>)> {
    let samples = indices.filter_map(|index| set.get(index, 0).ok());
    let batch = Batch::new(samples, set.shape());
    (!batch.indices.is_empty()).then(|| (to_tensor(&batch, device), batch.indices))
}

/// [`load_images`], for what has to see all of a set.
///
/// # Errors
/// If nothing is left of the data: to pass over all would measure or keep nothing.
pub(super) fn load_present(
    set: &ImageDataset,
    indices: Range<usize>,
    device: &Device,
) -> Result<Option<(Tensor<4>, Vec<usize>)>, DataError> {
    let asked = indices.len();
    let loaded = load_images(set, indices, device);
    if loaded.as_ref().map_or(0, |(_, read)| read.len()) < asked {
        set.check_present()?;
    }
    Ok(loaded)
}

/// Names what is known to be damaged before any image is read.
pub(super) fn report_damage(set: &ImageDataset, observer: &mut Observer) {
    for damage in set.damage() {
        let _ = observer(Event::Warning(&damage.to_string()));
    }
}

/// A batch on the device, `[N, C, H, W]`.
pub(crate) fn to_tensor(batch: &Batch, device: &Device) -> Tensor<4> {
    Tensor::from_data(TensorData::new(batch.images.clone(), batch.shape), device)
}
