# SPDX-License-Identifier: Apache-2.0
"""Bad inputs of many kinds through every command: each must end in the right result or in one sentence."""
