//! PyTorch's checkpoints: what `torch.save` and Lightning write, read without running any of it.

mod input;
mod legacy;
mod object;
mod pickle;
mod state_dict;
mod view;
mod write;
mod zip;

pub(super) use legacy::{MAGIC as LEGACY_MAGIC, open as open_legacy};
pub(super) use write::write;
pub(super) use zip::open as open_zip;

#[cfg(test)]
mod tests;
