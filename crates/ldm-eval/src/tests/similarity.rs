use super::{assert_near, expected, pictures};
use crate::ssim;

#[test]
fn ssim_is_scikit_images() {
    let (original, distorted) = (&pictures("original")[0], &pictures("distorted")[0]);
    assert_near(ssim(original, distorted), expected("ssim"), 1e-9);
    assert_near(ssim(distorted, original), expected("ssim"), 1e-9);
}

#[test]
fn equal_pictures_are_as_alike_as_can_be() {
    let original = &pictures("original")[0];
    assert_near(ssim(original, original), 1.0, 1e-12);
}
