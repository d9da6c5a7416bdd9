Feature: The configuration changes while the daemon runs

  Background:
    Given a pool "words" with 1 slot
    And its tokens take 10 ms
    And a pool "other" with 1 slot
    And its tokens take 10 ms

  @ORCHD-CONF-1 @ORCHD-CONF-2 @ORCHD-CONF-3
  Scenario: A pool goes, another one comes, and the third is not touched
    Given the pool "words" is ready
    And the pool "other" is ready
    When alice submits and streams "running" to pool "words":
      | prompt     | Once upon a time |
      | max_tokens | 60               |
    And "running" has received 2 tokens
    And the file names the pools "words, new" instead
    Then the pools are "words, new"
    And the stream "running" ends with end
    And the end event of "running" says:
      | tokens_out    | 60 |
      | continuations | 0  |
    And the configuration says:
      | generation      | 2    |
      | last_error      | null |
      | pending_restart | []   |
      | pools           | []   |

  @ORCHD-CONF-1 @ORCHD-AUTH-2
  Scenario: A file that is wrong changes nothing
    Given the pool "words" is ready
    When the file says "pols: []"
    Then the configuration is refused with "pols: unknown key; did you mean pools?"
    And the pools are "words, other"
    When alice asks for the configuration
    Then the answer is 403 FORBIDDEN

  @ORCHD-CONF-4
  Scenario: What cannot change in a running daemon waits for the next start
    Given the pool "words" is ready
    When the file sets "admission.fair" to "per-key"
    Then the configuration says:
      | generation      | 2                  |
      | pending_restart | ["admission.fair"] |
