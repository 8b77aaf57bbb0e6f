/* Reads the file of a subset in the format rankmajor/1 (docs/reference/format.md) with the C library alone.
 *
 *     cc -std=c99 -O2 -o read_subset read_subset.c
 *     ./read_subset digits.mdc                  k, shape and sha256
 *     ./read_subset digits.mdc 0 3 1 0 2 5      and the pixel of rank 0, class 3, tile 1, channel 0, row 2, column 5
 *
 * The header is read strictly: its keys in their order, numbers and names as the format writes them, within its
 * limits, then spaces, in a length that follows from it. Compare
 * the sha256 with subset_sha256[k-1] of the manifest: that proves every byte. Exit code 1: the file cannot be
 * read, 2: wrong use, 5: it is damaged or of another format.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HEADER_STEP 4096u
#define DIMENSIONS 6
#define LARGEST ((UINT64_C(1) << 31) - 1)      /* of a whole number */
#define LARGEST_FILE (UINT64_C(1) << 48)       /* bytes of subset N without its header */
#define LARGEST_HEADER UINT64_C(100000000)     /* bytes of the JSON */
#define LARGEST_MOMENT 1e6                     /* of a mean; a deviation is 1e-6 or more */

static void damaged(const char *what) {
    fprintf(stderr, "read_subset: %s: the file is damaged or no rankmajor/1 file, fetch it again\n", what);
    exit(5);
}

/* ---- SHA-256 (FIPS 180-4) of a whole buffer ---- */

static const uint32_t ROUND[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static uint32_t rotated(uint32_t value, int by) { return value >> by | value << (32 - by); }

static void compress(uint32_t state[8], const uint8_t *block) {
    uint32_t w[64], v[8];
    for (int i = 0; i < 16; i++)
        w[i] = (uint32_t)block[4 * i] << 24 | (uint32_t)block[4 * i + 1] << 16 | (uint32_t)block[4 * i + 2] << 8 |
               block[4 * i + 3];
    for (int i = 16; i < 64; i++) {
        uint32_t s0 = rotated(w[i - 15], 7) ^ rotated(w[i - 15], 18) ^ w[i - 15] >> 3;
        uint32_t s1 = rotated(w[i - 2], 17) ^ rotated(w[i - 2], 19) ^ w[i - 2] >> 10;
        w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    memcpy(v, state, sizeof v);
    for (int i = 0; i < 64; i++) {
        uint32_t s1 = rotated(v[4], 6) ^ rotated(v[4], 11) ^ rotated(v[4], 25);
        uint32_t first = v[7] + s1 + ((v[4] & v[5]) ^ (~v[4] & v[6])) + ROUND[i] + w[i];
        uint32_t s0 = rotated(v[0], 2) ^ rotated(v[0], 13) ^ rotated(v[0], 22);
        uint32_t second = s0 + ((v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]));
        memmove(v + 1, v, 7 * sizeof v[0]);
        v[4] += first;
        v[0] = first + second;
    }
    for (int i = 0; i < 8; i++) state[i] += v[i];
}

static void sha256(const uint8_t *data, size_t size, char hex[65]) {
    uint32_t state[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    uint8_t tail[128] = {0};
    size_t whole = size / 64 * 64, rest = size - whole, padded = rest < 56 ? 64 : 128;
    for (size_t i = 0; i < whole; i += 64) compress(state, data + i);
    memcpy(tail, data + whole, rest);
    tail[rest] = 0x80;
    for (int i = 0; i < 8; i++) tail[padded - 1 - i] = (uint8_t)((uint64_t)size * 8 >> 8 * i);
    for (size_t i = 0; i < padded; i += 64) compress(state, tail + i);
    for (int i = 0; i < 8; i++) sprintf(hex + 8 * i, "%08" PRIx32, state[i]);
}

/* ---- the header ---- */

typedef struct {
    const char *at, *end;
} Text;

typedef struct {
    uint64_t ipc, factor, classes, side, channels;
    uint64_t shape[DIMENSIONS]; /* k, C, f*f, ch, s, s */
    uint64_t header, payload;   /* bytes */
} Subset;

static void expect(Text *text, const char *literal) {
    size_t size = strlen(literal);
    if ((size_t)(text->end - text->at) < size || memcmp(text->at, literal, size)) damaged("unexpected header");
    text->at += size;
}

/* A whole number as JSON has it, at most 2^48. */
static uint64_t number(Text *text) {
    uint64_t value = 0;
    const char *start = text->at;
    while (text->at < text->end && *text->at >= '0' && *text->at <= '9') {
        value = value * 10 + (uint64_t)(*text->at++ - '0');
        if (value > LARGEST_FILE) damaged("a number is too large");
    }
    if (text->at == start || (*start == '0' && text->at - start > 1)) damaged("a number is missing");
    return value;
}

/* A whole number of the metadata, 1 to most. */
static uint64_t setting(Text *text, uint64_t most) {
    uint64_t value = number(text);
    if (value < 1 || value > most) damaged("a number is outside its limits");
    return value;
}

/* a * b, refused when it exceeds 2^48. */
static uint64_t product(uint64_t a, uint64_t b) {
    if (b && a > LARGEST_FILE / b) damaged("a size is too large");
    return a * b;
}

static int starts(const Text *text, const char *literal) {
    size_t size = strlen(literal);
    return (size_t)(text->end - text->at) >= size && !memcmp(text->at, literal, size);
}

/* Four lower-case hexadecimal digits. */
static unsigned code_unit(Text *text) {
    static const char DIGITS[] = "0123456789abcdef";
    unsigned value = 0;
    for (int i = 0; i < 4; i++) {
        const char *digit = text->at < text->end && *text->at ? strchr(DIGITS, *text->at++) : NULL;
        if (!digit) damaged("an escape is not what it should be");
        value = value * 16 + (unsigned)(digit - DIGITS);
    }
    return value;
}

/* One character of a name in a JSON string in a JSON string: every backslash and quote of the inner one has a
 * backslash in front. There is one way to write each character: as it is, \b \f \n \r \t \" \\, else \uXXXX. */
static void character(Text *text) {
    if (starts(text, "\\\\")) {
        text->at += 2;
        if (starts(text, "\\\\") || starts(text, "\\\"")) {
            text->at += 2;
        } else if (starts(text, "u")) {
            text->at++;
            unsigned unit = code_unit(text);
            if ((unit >= 0x20 && unit < 0x7f) || (unit < 0x20 && memchr("\b\t\n\f\r", (int)unit, 5)))
                damaged("a character is escaped in another way");
            if (unit >= 0xdc00 && unit < 0xe000) damaged("half of a surrogate pair");
            if (unit >= 0xd800 && unit < 0xdc00) {
                expect(text, "\\\\u");
                unsigned low = code_unit(text);
                if (low < 0xdc00 || low > 0xdfff) damaged("half of a surrogate pair");
            }
        } else if (text->at < text->end && *text->at && strchr("bfnrt", *text->at)) {
            text->at++;
        } else {
            damaged("an escape is not what it should be");
        }
    } else {
        if (text->at == text->end || *text->at < 0x20 || *text->at > 0x7e || *text->at == '"' || *text->at == '\\')
            damaged("a name is not closed");
        text->at++;
    }
}

/* Skips a JSON list of names that stands in a JSON string, and returns its length. */
static uint64_t names(Text *text) {
    uint64_t count = 0;
    expect(text, "[");
    do {
        if (count++) expect(text, ",");
        expect(text, "\\\"");
        do character(text);
        while (!starts(text, "\\\""));
        expect(text, "\\\"");
    } while (!starts(text, "]"));
    expect(text, "]");
    return count;
}

/* Writes the shortest decimal that reads back as `value`, of several the nearest, with a point or an exponent:
 * 0.25, 1e-05, 1000000.0. */
static void shortest(double value, char out[64]) {
    char text[32], figures[20];
    int count = 1, point;
    double size = value < 0 ? -value : value > 0 ? value : 0;
    for (;; count++) {
        snprintf(text, sizeof text, "%.*e", count - 1, size); /* the nearest of this length */
        if (strtod(text, NULL) == size) break;
        /* Above a power of two lie more decimals that read back as it than below. */
        char *last = text + (count == 1 ? 0 : count);
        if (*last == '9') continue;
        ++*last;
        if (strtod(text, NULL) == size) break;
    }
    figures[0] = text[0];
    memcpy(figures + 1, text + 2, (size_t)count - 1);
    figures[count] = 0;
    point = size == 0 ? 1 : atoi(strchr(text, 'e') + 1) + 1; /* digits in front of the point */
    if (value < 0 || (value == 0 && 1 / value < 0)) *out++ = '-';
    if (point <= -4 || point > 16)
        sprintf(out, "%c%s%se%c%02d", *figures, count > 1 ? "." : "", figures + 1, point < 1 ? '-' : '+', abs(point - 1));
    else if (point <= 0)
        sprintf(out, "0.%.*s%s", -point, "000", figures);
    else if (point >= count)
        sprintf(out, "%s%.*s.0", figures, point - count, "000000000000000");
    else
        sprintf(out, "%.*s.%s", point, figures, figures + point);
}

/* Skips a JSON list of numbers from `least` to `most`, and returns its length. */
static uint64_t moments(Text *text, double least, double most) {
    char found[32], written[64];
    uint64_t count = 0;
    expect(text, "[");
    do {
        size_t size = 0;
        if (count++) expect(text, ",");
        while (text->at < text->end && *text->at && strchr("0123456789.e+-", *text->at) && size + 1 < sizeof found)
            found[size++] = *text->at++;
        found[size] = 0;
        double value = strtod(found, NULL);
        if (!size || !(value >= least && value <= most)) damaged("a mean or deviation is outside its limits");
        shortest(value, written);
        if (strcmp(found, written)) damaged("a number is written in another way");
    } while (!starts(text, "]"));
    expect(text, "]");
    return count;
}

static int digits(uint64_t value) {
    int count = 1;
    while (value /= 10) count++;
    return count;
}

static Subset read_header(const uint8_t *data, size_t size) {
    Subset subset;
    uint64_t length = 0;
    if (size < 8) damaged("too short");
    for (int i = 7; i >= 0; i--) length = length << 8 | data[i];
    if (length > LARGEST_HEADER || length > size - 8) damaged("the header is cut");
    Text text = {(const char *)data + 8, (const char *)data + 8 + length};
    expect(&text, "{\"__metadata__\":{\"format\":\"rankmajor/1\",\"ipc\":\"");
    subset.ipc = setting(&text, LARGEST);
    expect(&text, "\",\"factor\":\"");
    subset.factor = setting(&text, LARGEST);
    expect(&text, "\",\"classes\":\"");
    subset.classes = names(&text);
    expect(&text, "\",\"mean\":\"");
    uint64_t means = moments(&text, -LARGEST_MOMENT, LARGEST_MOMENT);
    expect(&text, "\",\"std\":\"");
    uint64_t deviations = moments(&text, 1 / LARGEST_MOMENT, LARGEST_MOMENT);
    expect(&text, "\",\"image_size\":\"");
    subset.side = setting(&text, LARGEST);
    expect(&text, "\",\"channels\":\"");
    subset.channels = setting(&text, 4);
    expect(&text, "\"},\"tiles\":{\"dtype\":\"U8\",\"shape\":[");
    for (int i = 0; i < DIMENSIONS; i++) {
        if (i) expect(&text, ",");
        subset.shape[i] = number(&text);
    }
    expect(&text, "],\"data_offsets\":[0,");
    subset.payload = number(&text);
    expect(&text, "]}}");
    uint64_t json = (uint64_t)(text.at - (const char *)data) - 8;
    while (text.at < text.end)
        if (*text.at++ != ' ') damaged("the header goes on");

    if (subset.factor > subset.side) damaged("an impossible set");
    if (means != subset.channels || deviations != subset.channels) damaged("mean or std is of another length");
    uint64_t k = subset.shape[0], tile = (subset.side + subset.factor - 1) / subset.factor, rank = 1;
    uint64_t expected[DIMENSIONS] = {k, subset.classes, product(subset.factor, subset.factor), subset.channels, tile, tile};
    if (memcmp(expected, subset.shape, sizeof expected)) damaged("the shape is not that of the set");
    for (int i = 1; i < DIMENSIONS; i++) rank = product(rank, subset.shape[i]);
    if (k < 1 || k > subset.ipc) damaged("no such subset");
    if (subset.payload != product(k, rank)) damaged("the payload is of another length");
    /* The header of the whole set is the longest; all have its length. */
    uint64_t whole = 8 + json - digits(k) - digits(subset.payload) + digits(subset.ipc) + digits(product(subset.ipc, rank));
    subset.header = (whole + HEADER_STEP - 1) / HEADER_STEP * HEADER_STEP;
    if (subset.header != length + 8) damaged("the header is of another length");
    if (size != subset.header + subset.payload) damaged("the file is longer or shorter than its header says");
    return subset;
}

/* ---- the program ---- */

static uint8_t *read_file(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    uint8_t *data = NULL;
    size_t room = 1 << 16, got;
    *size = 0;
    if (file) {
        while ((data = realloc(data, room))) {
            *size += got = fread(data + *size, 1, room - *size, file);
            if (!got) break;
            if (*size == room) room *= 2;
        }
    }
    if (!file || !data || ferror(file)) {
        fprintf(stderr, "read_subset: %s: %s\n", path, strerror(errno));
        exit(1);
    }
    fclose(file);
    return data;
}

int main(int count, char **arguments) {
    if (count < 2 || (count - 2) % DIMENSIONS) {
        fprintf(stderr, "usage: read_subset FILE [RANK CLASS TILE CHANNEL ROW COLUMN]...\n");
        return 2;
    }
    size_t size;
    char hex[65];
    uint8_t *data = read_file(arguments[1], &size);
    Subset subset = read_header(data, size);
    sha256(data, size, hex);
    printf("k %" PRIu64 "\nshape", subset.shape[0]);
    for (int i = 0; i < DIMENSIONS; i++) printf(" %" PRIu64, subset.shape[i]);
    printf("\nsha256 %s\n", hex);
    for (int first = 2; first < count; first += DIMENSIONS) {
        uint64_t offset = 0;
        for (int i = 0; i < DIMENSIONS; i++) {
            char *end;
            const char *argument = arguments[first + i];
            uint64_t index = strtoull(argument, &end, 10);
            if (*argument < '0' || *argument > '9' || *end || index >= subset.shape[i]) {
                fprintf(stderr, "read_subset: %s is no index below %" PRIu64 "\n", argument, subset.shape[i]);
                return 2;
            }
            offset = offset * subset.shape[i] + index;
        }
        printf("pixel %d\n", data[subset.header + offset]);
    }
    free(data);
    return 0;
}
