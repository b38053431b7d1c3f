#![doc = include_str!("../../README.md")]

pub mod events;

pub mod files;
pub mod kafka;
