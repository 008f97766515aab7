use super::{assert_near, expected, pictures};
use crate::{psnr, ssim};

#[test]
fn psnr_and_ssim_are_scikit_images() {
    let (original, distorted) = (&pictures("original")[0], &pictures("distorted")[0]);
    assert_near(psnr(original, distorted), expected("psnr"), 1e-12);
    assert_near(ssim(original, distorted), expected("ssim"), 1e-9);
    assert_near(ssim(distorted, original), expected("ssim"), 1e-9);
}

#[test]
fn equal_pictures_are_as_alike_as_can_be() {
    let original = &pictures("original")[0];
    assert_near(ssim(original, original), 1.0, 1e-12);
    assert_eq!(psnr(original, original), f64::INFINITY);
}
