// SPDX-License-Identifier: GPL-2.0-or-later
/* Stress: integers, floating point and string instructions, against known results. */
#include <fenv.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "stress.h"

static uint32_t rotate(uint32_t value, int by)
{
	return value >> by | value << (32 - by);
}

/*
 * The constants of SHA-256 (FIPS 180-4, 4.2.2 and 5.3.3) are the fractions of the roots of the first primes. Newton's
 * iteration in 80-bit floating point finds them: x87 instructions that must be right to the 32nd bit.
 */
static void sha256_constants(uint32_t k[64], uint32_t h[8])
{
	for (int n = 2, found = 0; found < 64; n++) {
		long double cube = 3, square = 3;
		int divisor = 2;

		while (n % divisor)
			divisor++;
		if (divisor < n)
			continue;
		for (int i = 0; i < 60; i++) {
			cube = (2 * cube + n / (cube * cube)) / 3;
			square = (square + n / square) / 2;
		}
		k[found] = (uint32_t)((cube - (int)cube) * 4294967296.0L);
		if (found < 8)
			h[found] = (uint32_t)((square - (int)square) * 4294967296.0L);
		found++;
	}
}

static void sha256_block(uint32_t h[8], const uint32_t k[64], const uint8_t *p)
{
	uint32_t w[64], s[8];

	for (int i = 0; i < 16; i++, p += 4)
		w[i] = (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
	for (int i = 16; i < 64; i++)
		w[i] = w[i - 16] + w[i - 7] + (rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ w[i - 15] >> 3) +
		       (rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ w[i - 2] >> 10);
	memcpy(s, h, sizeof(s));
	for (int i = 0; i < 64; i++) {
		uint32_t a = s[7] + (rotate(s[4], 6) ^ rotate(s[4], 11) ^ rotate(s[4], 25)) +
			     ((s[4] & s[5]) ^ (~s[4] & s[6])) + k[i] + w[i];
		uint32_t b = (rotate(s[0], 2) ^ rotate(s[0], 13) ^ rotate(s[0], 22)) +
			     ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));

		memmove(s + 1, s, 7 * sizeof(*s));
		s[4] += a;
		s[0] = a + b;
	}
	for (int i = 0; i < 8; i++)
		h[i] += s[i];
}

/* A million times "a", the third vector of FIPS 180-4. */
bool part_sha(void)
{
	static const uint32_t expected[8] = { 0xcdc76e5c, 0x9914fb92, 0x81a1c7e2, 0x84d73e67,
					      0xf1809a48, 0xa497200e, 0x046d39cc, 0xc7112cd0 };
	static const uint8_t last[64] = { [0] = 0x80, [61] = 0x7a, [62] = 0x12 }; /* 8,000,000 bits */
	uint32_t k[64], h[8];
	uint8_t block[64];

	sha256_constants(k, h);
	if (k[0] != 0x428a2f98 || k[63] != 0xc67178f2 || h[0] != 0x6a09e667)
		return BAD("constants %08x %08x %08x", k[0], k[63], h[0]);
	memset(block, 'a', sizeof(block));
	for (int i = 0; i < 1000000 / 64; i++)
		sha256_block(h, k, block);
	sha256_block(h, k, last);
	return memcmp(h, expected, sizeof(h)) == 0 || BAD("digest starts with %08x", h[0]);
}

/* Multiply and divide in 128 bits, and the same in pieces of 32; shifts through every width. */
bool part_integers(void)
{
	uint64_t seed = 88172645463325252u;

	for (long i = 0; i < options.counts; i++) {
		uint64_t a, b, low, high, quotient, rest, middle;
		unsigned __int128 product;

		seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17; /* xorshift64 */
		a = seed;
		seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
		b = seed | 1;
		product = (unsigned __int128)a * b;
		low = (a & 0xffffffff) * (b & 0xffffffff);
		middle = (a >> 32) * (b & 0xffffffff) + (low >> 32);
		high = (a & 0xffffffff) * (b >> 32) + (middle & 0xffffffff);
		low = high << 32 | (low & 0xffffffff);
		high = (a >> 32) * (b >> 32) + (middle >> 32) + (high >> 32);
		if ((uint64_t)product != low || (uint64_t)(product >> 64) != high)
			return BAD("%#lx * %#lx", (long)a, (long)b);
		/* divq: the quotient of product + rest by b is a again. */
		rest = b / 3;
		product += rest;
		__asm__("divq %4"
			: "=a"(quotient), "=d"(middle)
			: "a"((uint64_t)product), "d"((uint64_t)(product >> 64)), "r"(b)
			: "cc");
		if (quotient != a || middle != rest)
			return BAD("division by %#lx", (long)b);
		if ((a << (i & 63)) >> (i & 63) << (i & 63) != a << (i & 63) ||
		    __builtin_popcountll(a) + __builtin_popcountll(~a) != 64)
			return BAD("bits of %#lx", (long)a);
	}
	return true;
}

/* The harmonic series in three precisions: IEEE 754 leaves one right result for each. */
bool part_floating(void)
{
	volatile double in_sse = 0;
	volatile float single = 0;
	volatile long double in_x87 = 0;
	double sum_sse;
	float sum_single;
	long double sum_x87;
	uint64_t bits, mantissa;
	uint32_t single_bits;

	for (int i = 1; i <= 100000; i++) {
		in_sse += 1.0 / i;
		single += 1.0f / (float)i;
		in_x87 += 1.0L / i;
	}
	sum_sse = in_sse, sum_single = single, sum_x87 = in_x87;
	memcpy(&bits, &sum_sse, sizeof(bits));
	memcpy(&single_bits, &sum_single, sizeof(single_bits));
	memcpy(&mantissa, &sum_x87, sizeof(mantissa));
	return (bits == 0x40282e27a22f3f7c && single_bits == 0x41417420 && mantissa == 0xc1713d1179fd8243) ||
	       BAD("%016lx %08x %016lx", (long)bits, single_bits, (long)mantissa);
}

/* 1/3 in each rounding mode, in SSE and x87. */
static const struct rounding {
	int mode;
	uint64_t sse, x87;
} roundings[] = {
	{ FE_TONEAREST, 0x3fd5555555555555, 0xaaaaaaaaaaaaaaab },
	{ FE_DOWNWARD, 0x3fd5555555555555, 0xaaaaaaaaaaaaaaaa },
	{ FE_UPWARD, 0x3fd5555555555556, 0xaaaaaaaaaaaaaaab },
	{ FE_TOWARDZERO, 0x3fd5555555555555, 0xaaaaaaaaaaaaaaaa },
};

/* Each thread keeps its own rounding mode: it lives in MXCSR and the x87 control word, over every task switch. */
static void *divide_in_mode(void *argument)
{
	const struct rounding *rounding = argument;
	volatile double one = 1, three = 3;
	volatile long double long_one = 1, long_three = 3;

	fesetround(rounding->mode);
	for (long i = 0; i < options.counts * 2; i++) {
		double sse = one / three;
		long double x87 = long_one / long_three;

		if (memcmp(&sse, &rounding->sse, 8) || memcmp(&x87, &rounding->x87, 8))
			return argument;
		if (i % 1000 == 0)
			sched_yield();
	}
	return NULL;
}

bool part_rounding(void)
{
	pthread_t threads[4];
	int bad = 0;

	for (int i = 0; i < 4; i++)
		if (pthread_create(&threads[i], NULL, divide_in_mode, (void *)&roundings[i]))
			return BAD("no thread");
	for (int i = 0; i < 4; i++) {
		void *result;

		pthread_join(threads[i], &result);
		bad += result != NULL;
	}
	return bad == 0 || BAD("%d of 4 rounding modes", bad);
}

/* movs, stos, scas and cmps, in both directions, over page borders and with every misalignment. */
bool part_strings(void)
{
	static uint8_t from[3 * PAGE], to[3 * PAGE];

	for (size_t i = 0; i < sizeof(from); i++)
		from[i] = (uint8_t)(i * 7 + i / 251);
	for (long n = 0; n < options.counts / 100; n++) {
		size_t source = (size_t)n % 64, target = (size_t)n % 61, size = 2 * PAGE + (size_t)n % 997, left = size;
		void *s = from + source, *d = to + target;

		__asm__ volatile("rep stosb" : "+D"(d), "+c"(left) : "a"(0xEE) : "memory");
		d = to + target, left = size;
		if (n % 2)
			__asm__ volatile("rep movsb" : "+S"(s), "+D"(d), "+c"(left) : : "memory");
		else {
			s = from + source + size - 1, d = to + target + size - 1;
			__asm__ volatile("std; rep movsb; cld" : "+S"(s), "+D"(d), "+c"(left) : : "memory");
		}
		if (left || memcmp(from + source, to + target, size))
			return BAD("copy of %zu bytes from %zu to %zu", size, source, target);
		s = from + source, d = to + target, left = size;
		to[target + size - 5] ^= 1;
		__asm__ volatile("repe cmpsb" : "+S"(s), "+D"(d), "+c"(left) : : "memory", "cc");
		if (left != 4)
			return BAD("comparison of %zu bytes stopped %zu before the end", size, left);
	}
	return true;
}
