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
/// - HEIC and AVIF are not decoded: ask the camera plugin for JPEG.
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

  /// `empty`, `heic`, `unsupported_format`, `rare_jpeg`, `no_pixel_data` or `undecodable`.
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
  if (_isHeif(photo)) {
    throw const PhotoException('heic', 'This is a HEIC or AVIF photo. Set the phone to JPEG (iPhone: Most Compatible).');
  }
  if (!_isKnown(photo)) {
    throw const PhotoException(
      'unsupported_format',
      'The file is neither JPEG nor PNG nor WebP. Choose another one or take the photo again.',
    );
  }
  final refusal = _jpegRefusal(photo);
  if (refusal == 'rare_jpeg') {
    throw const PhotoException('rare_jpeg', 'A JPEG of a rare kind (12 bits, lossless in grey). Save it as a usual JPEG.');
  }
  if (refusal == 'no_pixel_data') {
    throw const PhotoException('no_pixel_data', "The file is a JPEG's header without its pixels. Take the photo again.");
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
  return _hasAt(photo, 0, const [0xff, 0xd8, 0xff]) ||
      _hasAt(photo, 0, const [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]) ||
      (_hasAt(photo, 0, 'RIFF'.codeUnits) && _hasAt(photo, 8, 'WEBP'.codeUnits));
}

bool _hasAt(Uint8List photo, int offset, List<int> bytes) {
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

const _heifBrands = ['heic', 'heix', 'hevc', 'hevx', 'heim', 'heis', 'mif1', 'msf1', 'avif', 'avis'];

/// Whether it is a HEIC or an AVIF, which phones write.
bool _isHeif(Uint8List photo) {
  if (photo.length < 12 || !_hasAt(photo, 4, 'ftyp'.codeUnits)) {
    return false;
  }
  final places = [8, for (var i = 16; i + 4 <= photo.length && i + 4 <= photo[3]; i += 4) i];
  return places.any((place) => _heifBrands.any((brand) => _hasAt(photo, place, brand.codeUnits)));
}

/// `rare_jpeg` or `no_pixel_data`, as the server says by a JPEG's header; null for all that is decoded, and for other
/// files. As `jpegRefusal` in `photo_file.js`.
String? _jpegRefusal(Uint8List photo) {
  if (!_hasAt(photo, 0, const [0xff, 0xd8])) {
    return null;
  }
  final view = ByteData.sublistView(photo);
  int? frame;
  var start = 2;
  while (start + 3 < photo.length) {
    final marker = photo[start + 1];
    if (photo[start] != 0xff || marker == 0x00 || marker == 0xff) {
      start += 1;
      continue;
    }
    if (marker == 0x01 || (marker >= 0xd0 && marker <= 0xd8)) {
      start += 2;
      continue;
    }
    if (marker == 0xd9) {
      return null;
    }
    if (marker == 0xda) {
      break;
    }
    if ((marker >= 0xc0 && marker <= 0xcf && !const [0xc4, 0xc8, 0xcc].contains(marker)) || marker == 0xf7) {
      frame ??= start;
    }
    start += 2 + math.max(2, view.getUint16(start + 2));
  }
  if (frame == null || frame + 9 >= photo.length) {
    return null;
  }
  final kind = photo[frame + 1];
  final bits = photo[frame + 4];
  final deep = bits != 8 && bits >= 2 && bits <= 16; // any other number is damage
  final greyLossless = kind % 4 == 3 && photo[frame + 9] == 1;
  final hierarchical = kind % 8 >= 5; // or JPEG-LS
  if (deep || hierarchical || greyLossless) {
    return 'rare_jpeg';
  }
  if (start + 3 >= photo.length) {
    return null; // there is no scan
  }
  final coded = start + 2 + math.max(2, view.getUint16(start + 2));
  final height = view.getUint16(frame + 5);
  final width = view.getUint16(frame + 7);
  if (height == 0 && _markerBehind(photo, coded) == 0xdc) {
    return 'rare_jpeg'; // its height stands behind its pixels
  }
  var end = coded;
  while (end + 1 < photo.length && !(photo[end] == 0xff && photo[end + 1] == 0xd9)) {
    end++;
  }
  if (end + 1 >= photo.length) {
    return null;
  }
  final blocks = (width + 7) ~/ 8 * ((height + 7) ~/ 8); // each takes a bit at the least in Huffman's codes
  return 8 * (end - coded) < (kind < 0xc8 ? blocks : 1) ? 'no_pixel_data' : null;
}

/// The marker that ends a scan, of which restarts are none.
int? _markerBehind(Uint8List photo, int from) {
  for (var i = from; i + 1 < photo.length; i++) {
    final next = photo[i + 1];
    if (photo[i] == 0xff && next != 0x00 && next != 0xff && !(next >= 0xd0 && next <= 0xd7)) {
      return next;
    }
  }
  return null;
}
