/// The Flutter client: makes of any photo the small JPEG that PillSnap's server expects.
///
/// CHECKED BY READING ONLY. No Dart compiler has run this file and no golden vector has been fed to it. A test compares
/// the values of [contract] with `contract.json`; that is all. Before an app ships it, run the vectors of
/// `golden/vectors.json` through [prepareSquare] and [preparePhoto] in `flutter test`.
///
/// Needs `package:image` 4.x (`image: ^4.2.0`). What was read in its sources, and what follows from it:
/// - `copyResize(..., interpolation: linear)` samples at `x * scale`, without half-pixel centres: its pictures are
///   shifted by up to half a source pixel. So the resize is written out here, as in `pillsnap_client.js`.
/// - `encodeJpg` uses chroma 4:4:4 unless told otherwise, and writes the picture's EXIF into the file. So 4:2:0 is named
///   here, and the picture that is encoded is a new one, without EXIF.
/// - `decodeImage` turns JPEGs upright by itself and forgets the orientation; `bakeOrientation` does it for the others.
/// - Its JPEG decoder repeats the colour samples of 4:2:0 photos instead of interpolating them, as the server's and the
///   browsers' do: at sharp colour edges a pixel can differ by more than the tolerance of the JPEG vectors.
/// - No colour profile is applied, as the contract asks. (Flutter's own `instantiateImageCodec` does apply it: do not
///   use it here.)
/// - Whether a JPEG that is cut off is an error there was not found out; the contract asks for an error.
/// - `decodeImage` asks a dozen decoders, of which that of TGA takes nearly anything. So only JPEG, PNG and WebP are
///   handed to it, told by their first bytes as the server tells them.
/// - HEIC is not decoded: ask the camera plugin for JPEG.
///
/// Run it outside the UI isolate (`compute(preparePhoto, bytes)`): a photo of 12 megapixels takes a while.
library pillsnap_client;

import 'dart:math' as math;
import 'dart:typed_data';

import 'package:image/image.dart' as img;

/// What this client does, in the form that the server compares with its own contract.
const Map<String, Object> contract = {
  'version': '1.0',
  'target_size': 512,
  'jpeg_quality': 85,
  'interpolation': 'linear',
  'crop': 'center',
  'orientation': 'exif_applied_and_dropped',
  'color': 'stored_values',
  'alpha': 'ignored',
  'pixel_centers': 'half',
  'border': 'clamp',
  'rounding': 'half_up',
  'upscale': true,
  'chroma_subsampling': '4:2:0',
  'metadata': 'none',
  'fingerprint': '73fddbcf93a7b388',
};

/// A photo that cannot be prepared. [code] is for programs, [message] for people.
class PhotoException implements Exception {
  const PhotoException(this.code, this.message);

  /// `empty`, `unsupported_format` or `undecodable`.
  final String code;
  final String message;

  @override
  String toString() => 'PhotoException($code): $message';
}

/// From a photo's file to the JPEG that is sent.
///
/// Throws [PhotoException].
Uint8List preparePhoto(Uint8List photo, {int targetSize = 512, int jpegQuality = 85}) {
  final square = img.Image.fromBytes(
    width: targetSize,
    height: targetSize,
    bytes: prepareSquare(photo, targetSize: targetSize).buffer,
    numChannels: 3,
    order: img.ChannelOrder.rgb,
  );
  return img.encodeJpg(square, quality: jpegQuality, chroma: img.JpegChroma.yuv420);
}

/// Everything before the JPEG: upright, cropped, resized. R, G, B of targetSize × targetSize pixels.
///
/// Throws [PhotoException].
Uint8List prepareSquare(Uint8List photo, {int targetSize = 512}) {
  final upright = _decode(photo);
  final side = math.min(upright.width, upright.height);
  final square = img.copyCrop(
    upright,
    x: (upright.width - side) ~/ 2,
    y: (upright.height - side) ~/ 2,
    width: side,
    height: side,
  );
  // Alpha is left out, not blended; grey is repeated; a palette is looked up.
  final rgb = square.convert(format: img.Format.uint8, numChannels: 3);
  return resizeLinear(rgb.getBytes(order: img.ChannelOrder.rgb), side, targetSize);
}

/// Bilinear resize of a square of R, G, B bytes. Pixel centres lie at index + 0.5, the border is repeated.
Uint8List resizeLinear(Uint8List rgb, int side, int size) {
  final low = Int32List(size);
  final high = Int32List(size);
  final weight = Float64List(size);
  for (var i = 0; i < size; i++) {
    final position = (i + 0.5) * side / size - 0.5;
    final floor = position.floor();
    low[i] = floor.clamp(0, side - 1);
    high[i] = (floor + 1).clamp(0, side - 1);
    weight[i] = position - floor;
  }
  final output = Uint8List(size * size * 3);
  for (var y = 0; y < size; y++) {
    final upper = low[y] * side;
    final lower = high[y] * side;
    final down = weight[y];
    for (var x = 0; x < size; x++) {
      final across = weight[x];
      for (var channel = 0; channel < 3; channel++) {
        final top = (1 - across) * rgb[(upper + low[x]) * 3 + channel] +
            across * rgb[(upper + high[x]) * 3 + channel];
        final bottom = (1 - across) * rgb[(lower + low[x]) * 3 + channel] +
            across * rgb[(lower + high[x]) * 3 + channel];
        output[(y * size + x) * 3 + channel] = ((1 - down) * top + down * bottom + 0.5).floor();
      }
    }
  }
  return output;
}

/// The picture upright, in whatever form it is stored.
img.Image _decode(Uint8List photo) {
  if (photo.isEmpty) {
    throw const PhotoException('empty', 'The file is empty. Choose another one or take the photo again.');
  }
  if (!_isKnown(photo)) {
    throw const PhotoException(
      'unsupported_format',
      'The file is neither JPEG nor PNG nor WebP. Choose another one or take the photo again.',
    );
  }
  img.Image? decoded;
  try {
    decoded = img.decodeImage(photo);
  } on Object {
    decoded = null; // the decoders throw many types, RangeError among them, on damaged files
  }
  if (decoded == null) {
    throw const PhotoException(
      'undecodable',
      'The picture is damaged and cannot be decoded. Take the photo again.',
    );
  }
  return img.bakeOrientation(decoded);
}

/// Whether the file begins as a JPEG, a PNG or a WebP does.
bool _isKnown(Uint8List photo) {
  bool hasAt(int offset, List<int> bytes) {
    if (photo.length < offset + bytes.length) {
      return false;
    }
    for (var i = 0; i < bytes.length; i++) {
      if (photo[offset + i] != bytes[i]) {
        return false;
      }
    }
    return true;
  }

  return hasAt(0, const [0xff, 0xd8, 0xff]) ||
      hasAt(0, const [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]) ||
      (hasAt(0, const [0x52, 0x49, 0x46, 0x46]) && hasAt(8, const [0x57, 0x45, 0x42, 0x50]));
}
