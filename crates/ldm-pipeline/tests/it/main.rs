//! One binary for the comparisons with CompVis' and diffusers' numbers, for stages that fail, for training in less memory, and for
//! runs on the layouts of public data sets: linking takes longer than they do.

mod common;
mod compvis_training;
mod diagnosis;
mod diffusers_training;
mod public_layouts;
mod reduced_memory;
mod sampling;
