//! One binary for the comparisons with CompVis' and diffusers' numbers: linking takes longer than they do.

mod common;
mod compvis_training;
mod diffusers_training;
mod sampling;
