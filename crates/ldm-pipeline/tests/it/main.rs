//! One binary for the comparisons with CompVis' and diffusers' numbers, for stages that fail, and for training in less memory: linking takes longer than they do.

mod common;
mod compvis_training;
mod diagnosis;
mod diffusers_training;
mod reduced_memory;
mod sampling;
