//! From a data set to tensors.

use burn::tensor::{Device, Tensor, TensorData};

use super::{Event, Observer};
use crate::data::{Batch, DataError, Dataset, ImageDataset};

/// The readable ones among some samples of one shape, `[N, C, H, W]`, and their numbers; `None` if there are none.
///
/// Damaged ones are passed over in silence: [`DamageReport`](super::damaged::DamageReport) names them.
pub(crate) fn load_images(
    set: &dyn Dataset,
    indices: impl IntoIterator<Item = usize>,
    device: &Device,
) -> Option<(Tensor<4>, Vec<usize>)> {
    let samples: Vec<_> = (indices.into_iter())
        .filter_map(|index| set.get(index, 0).ok())
        .collect();
    let shape = set.shape(samples.first()?.index);
    let batch = Batch::new(samples, shape);
    Some((to_tensor(&batch, device), batch.indices))
}

/// [`load_images`], for what has to see all of a set.
///
/// # Errors
/// If nothing is left of the data: to pass over all would measure or keep nothing.
pub(super) fn load_present(
    set: &ImageDataset,
    indices: &[usize],
    device: &Device,
) -> Result<Option<(Tensor<4>, Vec<usize>)>, DataError> {
    let asked = indices.len();
    let loaded = load_images(set, indices.iter().copied(), device);
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

/// Tells how the images are dealt out to the buckets, if there are any, and warns of those that don't fill a step of `per_step` images.
pub(super) fn report_buckets(set: &ImageDataset, per_step: usize, observer: &mut Observer) {
    if !set.has_buckets() {
        return;
    }
    let buckets = set.buckets();
    let counts = || {
        buckets
            .sizes()
            .iter()
            .zip(buckets.members().iter().map(Vec::len))
    };
    let list: Vec<String> = counts()
        .map(|(size, count)| format!("{size} {count}"))
        .collect();
    let _ = observer(Event::Note(&format!("images by size: {}", list.join(", "))));
    for (size, count) in counts().filter(|(_, count)| (1..per_step).contains(count)) {
        let text = format!(
            "the bucket {size} has {count} of the images, fewer than the {per_step} of a step, so that a step repeats some; without it in data.buckets they go to another size"
        );
        let _ = observer(Event::Warning(&text));
    }
}

/// A batch on the device, `[N, C, H, W]`.
pub(crate) fn to_tensor(batch: &Batch, device: &Device) -> Tensor<4> {
    Tensor::from_data(TensorData::new(batch.images.clone(), batch.shape), device)
}
