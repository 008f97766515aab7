//! One binary for the comparisons with CompVis' and diffusers' numbers, and for stages that fail: linking takes longer than they do.

mod common;
mod compvis_training;
mod diagnosis;
mod diffusers_training;
mod sampling;
