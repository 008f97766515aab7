//! One binary for the crate's integration tests: linking takes longer than they do.

mod common;
mod compvis;
mod compvis_parity;
mod conditioning;
mod loss;
mod modern;
mod parity;
mod schedulers;
mod unet;
